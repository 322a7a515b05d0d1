"""``CfgNode``, the tree of config keys, and ``configurable``, which lets a class be built from one."""

import functools
import inspect
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from typing import Any

from fvcore.common.config import CfgNode as _CfgNode

from detectron2.utils.file_io import PathManager


class _UnknownKey(KeyError):
    # KeyError shows the repr of its message, with quotes around and inside of it.
    __str__ = Exception.__str__


def _dotted(node: dict, prefix: str = "") -> Iterator[str]:
    """The full names of all keys below ``node``, inner nodes included."""
    for name, value in node.items():
        yield prefix + name
        if isinstance(value, _CfgNode):
            yield from _dotted(value, f"{prefix}{name}.")


def _similarity(wanted: str, known: str) -> float:
    """How likely ``known`` is what was meant: the last part counts as much as the whole name."""
    wanted, known = wanted.upper(), known.upper()
    tails = (wanted.rpartition(".")[2], known.rpartition(".")[2])
    return SequenceMatcher(None, wanted, known).ratio() + SequenceMatcher(None, *tails).ratio()


class CfgNode(_CfgNode):
    """fvcore's ``CfgNode`` (yacs with ``_BASE_``) that checks versions and names the nearest key of an unknown one."""

    @classmethod
    def _open_cfg(cls, filename: str):
        return PathManager.open(filename, "r")

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True) -> None:
        """Take over the values of a yaml file and of the files that its ``_BASE_`` names.

        Args:
            cfg_filename: path or address.
            allow_unsafe: also obey yaml tags that run Python (``!!python/object/apply``), as some published configs
                have. Such a file may do anything: read it before, or pass False.

        Raises:
            FileNotFoundError: there is no such file.
            KeyError: the file has a key that this config does not know; the message names the nearest known one.
            ValueError: the file is no mapping, is of another config version, or a value has the wrong type.
        """
        if not PathManager.isfile(cfg_filename):
            raise FileNotFoundError(f"Config file '{cfg_filename}' does not exist.")
        loaded = self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe)
        version = loaded.get("VERSION")
        if version is None and ("WEIGHT" in loaded.get("MODEL", {}) or "AUG_ON" in loaded.get("TEST", {})):
            version = 1
        latest = get_cfg().VERSION
        if version not in (None, latest):
            raise ValueError(
                f"Config file '{cfg_filename}' has VERSION {version}, but only version {latest} is understood: load it "
                "once with a full Detectron2 (get_cfg, merge_from_file) and dump the result."
            )
        try:
            self.merge_from_other_cfg(type(self)(loaded))
        except KeyError as error:
            raise _UnknownKey(f"{cfg_filename}: {error}") from None

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """The content of a yaml file on top of that of its ``_BASE_``.

        Raises:
            ValueError: the file, or one that it is based on, holds no keys.
        """
        try:
            loaded = super().load_yaml_with_base(filename, allow_unsafe=allow_unsafe)
        except TypeError as error:  # an empty file: fvcore looks for _BASE_ in None
            raise ValueError(f"Config file '{filename}' (or its _BASE_) holds no keys.") from error
        if not isinstance(loaded, dict):
            raise ValueError(f"Config file '{filename}' (or its _BASE_) holds no keys.")
        return loaded

    def merge_from_other_cfg(self, cfg_other: _CfgNode) -> None:
        """Take over the values of a partial config; errors as in ``merge_from_file``."""
        self._check_known(cfg_other, self)
        super().merge_from_other_cfg(cfg_other)

    def merge_from_list(self, cfg_list: list) -> None:
        """Take over ``[key, value, key, value, ...]``, e.g. from the command line; text values are read as literals.

        Raises:
            KeyError: unknown key; the message names the nearest known one.
            ValueError: a key without value, or a value of the wrong type.
        """
        if len(cfg_list) % 2:
            raise ValueError(f"Config options come as KEY VALUE pairs, but there is an odd number of them: {cfg_list}")
        known = set(_dotted(self))
        for key in cfg_list[0::2]:
            if key not in known and not self._is_retired(key):
                self._raise_unknown(key)
        super().merge_from_list(cfg_list)

    def _check_known(self, other: dict, node: _CfgNode, prefix: str = "") -> None:
        for name, value in other.items():
            key = prefix + name
            if name in node:
                if isinstance(value, dict) and isinstance(node[name], _CfgNode):
                    self._check_known(value, node[name], key + ".")
            elif not node.is_new_allowed() and not self._is_retired(key):
                self._raise_unknown(key)

    def _is_retired(self, key: str) -> bool:
        return key in self.__dict__[self.DEPRECATED_KEYS] or self.key_is_renamed(key)

    def _raise_unknown(self, key: str) -> None:
        nearest = max(_dotted(self), key=lambda known: _similarity(key, known), default="")
        hint = f" The nearest known key is '{nearest}'." if nearest else ""
        raise _UnknownKey(f"Non-existent config key: '{key}'.{hint}")


global_cfg = CfgNode()


def get_cfg() -> CfgNode:
    """A fresh copy of all keys with their defaults (``defaults.py``)."""
    from .defaults import _C

    return _C.clone()


def set_global_cfg(cfg: CfgNode) -> None:
    """Let ``global_cfg`` hold the keys of ``cfg``: a shortcut for experiments, not for code that lasts."""
    global_cfg.clear()
    global_cfg.update(cfg)


def configurable(init_func: Callable | None = None, *, from_config: Callable | None = None) -> Callable:
    """Let a constructor, or any function, also be called with a config.

    On ``__init__``, the class has a classmethod ``from_config(cls, cfg, ...)`` that returns the keyword arguments of
    ``__init__``. On a function, use ``@configurable(from_config=...)``. A call whose first argument (or argument
    ``cfg``) is a ``CfgNode`` goes through ``from_config``; further arguments go to ``from_config`` if it takes them,
    and otherwise override what it returned.

    Raises:
        TypeError: used on anything else, or ``from_config`` is no classmethod or does not take ``cfg`` first.
    """
    if init_func is None and from_config is None:
        return configurable  # @configurable() instead of @configurable
    if init_func is None:
        if not inspect.isfunction(from_config):
            raise TypeError(f"@configurable(from_config=...) needs a function, not {from_config!r}")
        return functools.partial(_configurable_function, from_config)
    if not inspect.isfunction(init_func) or init_func.__name__ != "__init__" or from_config is not None:
        raise TypeError("@configurable belongs on an __init__; on a function use @configurable(from_config=...).")

    @functools.wraps(init_func)
    def wrapped(self, *args, **kwargs):
        translate = getattr(type(self), "from_config", None)
        if not inspect.ismethod(translate):
            raise TypeError(f"{type(self).__name__} uses @configurable and so needs a classmethod 'from_config'.")
        if _has_config(args, kwargs):
            init_func(self, **_translated(translate, args, kwargs))
        else:
            init_func(self, *args, **kwargs)

    return wrapped


def _configurable_function(from_config: Callable, func: Callable) -> Callable:
    @functools.wraps(func)
    def wrapped(*args, **kwargs):
        return func(**_translated(from_config, args, kwargs)) if _has_config(args, kwargs) else func(*args, **kwargs)

    wrapped.from_config = from_config
    return wrapped


def _has_config(args: tuple, kwargs: dict) -> bool:
    return isinstance(args[0] if args else kwargs.get("cfg"), _CfgNode) or isinstance(kwargs.get("cfg"), _CfgNode)


def _translated(from_config: Callable, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The keyword arguments that ``from_config`` derives, with those that it does not take on top."""
    parameters = inspect.signature(from_config).parameters
    if next(iter(parameters), None) != "cfg":
        raise TypeError(f"{from_config.__qualname__} has to take 'cfg' as its first argument.")
    takes_all = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())
    own = {name: value for name, value in kwargs.items() if takes_all or name in parameters}
    derived = from_config(*args, **own)
    derived.update((name, value) for name, value in kwargs.items() if name not in own)
    return derived
