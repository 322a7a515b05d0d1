"""Two global tables: how to obtain a data set by its name, and what is known about it (class names, evaluator, ...)."""

import difflib
from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class _Catalog(UserDict):
    def list(self) -> list[str]:
        """The registered names."""
        return [*self.data]

    def remove(self, name: str) -> None:
        """Forget ``name``; KeyError if it is not registered."""
        self.pop(name)

    def __repr__(self) -> str:
        return f"{type(self).__name__.strip('_')}({', '.join(self.data)})"

    __str__ = __repr__


class _DatasetCatalog(_Catalog):
    """Name -> function without arguments that returns the data set, usually a list of dicts.

    The function has to return the same records, in the same order, each time and in every process.
    """

    def register(self, name: str, func: Callable[[], Any]) -> None:
        """Make ``name`` usable in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.

        Raises:
            TypeError: ``func`` is not callable.
            AssertionError: the name is taken (the type that Detectron2 raises, which user code catches).
        """
        if not callable(func):
            raise TypeError(f"DatasetCatalog.register({name!r}, ...) expects a function, not {type(func).__name__}.")
        if name in self.data:
            raise AssertionError(
                f"Dataset '{name}' is already registered! Call DatasetCatalog.remove('{name}') first to replace it."
            )
        self.data[name] = func

    def get(self, name: str) -> Any:
        """Call the function registered under ``name`` and return its result; KeyError if there is none."""
        if name not in self.data:
            near = difflib.get_close_matches(name, self.data, n=3)
            hint = f"Did you mean {' or '.join(near)}? " if near else ""
            raise KeyError(f"Dataset '{name}' is not registered! {hint}Available datasets are: {', '.join(self.data)}")
        return self.data[name]()


class Metadata(SimpleNamespace):
    """Facts about one data set, as attributes: ``thing_classes``, ``evaluator_type``, ``json_file`` and so on.

    An attribute can be set once; setting it to an equal value again is allowed, to another value is an error,
    because everything that was built from the first value would silently disagree.
    """

    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:
        known = ", ".join(k for k in self.__dict__ if k != "name") or "none: the metadata is empty"
        raise AttributeError(
            f"Attribute '{key}' does not exist in the metadata of dataset '{self.name}'. Available keys: {known}."
        )

    def __setattr__(self, key: str, value: Any) -> None:
        if key in self.__dict__ and self.__dict__[key] != value:
            raise AssertionError(
                f"Attribute '{key}' in the metadata of '{self.name}' is set already and cannot be changed:\n"
                f"{self.__dict__[key]} != {value}"
            )
        super().__setattr__(key, value)

    def as_dict(self) -> dict[str, Any]:
        """A shallow copy of all attributes."""
        return dict(self.__dict__)

    def set(self, **kwargs: Any) -> "Metadata":
        """Set several attributes; returns itself."""
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """The attribute ``key``, or ``default`` where it does not exist."""
        return getattr(self, key, default)


class _MetadataCatalog(_Catalog):
    """Name -> :class:`Metadata`. Asking for a new name makes an empty entry, the same object for every later call."""

    def get(self, name: str) -> Metadata:
        if not name:
            raise ValueError("MetadataCatalog.get needs a data set name, but got an empty one.")
        return self.data.setdefault(name, Metadata(name=name))


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
