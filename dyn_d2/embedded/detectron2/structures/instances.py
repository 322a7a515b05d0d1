"""The objects of one image and what is known of each."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NoReturn

import numpy as np
import torch


class Instances:
    """Named fields (boxes, masks, classes, scores, ...) of equal length, one entry per object of an image.

    ``instances.name = value`` and ``instances.name`` set and get a field, ``"name" in``-tests are ``has(name)``;
    indexing applies to all fields. Attributes that start with "_" are not fields.
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any):
        """``image_size`` is (height, width); the rest are fields."""
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        return self._image_size

    def __setattr__(self, name: str, val: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, val)
        else:
            self.set(name, val)

    def __getattr__(self, name: str) -> Any:
        # `_fields` itself is missing while an object is copied or unpickled.
        fields = {} if name == "_fields" else self._fields
        if name not in fields:
            raise AttributeError(f"Instances has no field {name!r}; it has {sorted(fields)}.")
        return fields[name]

    def set(self, name: str, value: Any) -> None:
        """Add or replace a field.

        Raises:
            ValueError: its length differs from that of the other fields.
        """
        count = len(value)
        if self._fields and count != len(self):
            raise ValueError(f"Field {name!r} of length {count} does not fit Instances of length {len(self)}.")
        self._fields[name] = value

    def has(self, name: str) -> bool:
        return name in self._fields

    def remove(self, name: str) -> None:
        del self._fields[name]

    def get(self, name: str) -> Any:
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """The fields by name; the dict is this object's own."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> "Instances":
        """Copy whose fields are moved, as far as they have a ``to`` method."""
        moved = {k: v.to(*args, **kwargs) if hasattr(v, "to") else v for k, v in self._fields.items()}
        return Instances(self._image_size, **moved)

    def __getitem__(self, item: int | slice | torch.Tensor) -> "Instances":
        """Select objects by int (keeps one), slice, index vector or boolean mask.

        Raises:
            IndexError: int out of range.
        """
        if isinstance(item, (int, np.integer)) and not isinstance(item, bool):
            count = len(self)
            if not -count <= item < count:
                raise IndexError(f"Instances index {item} is out of range for length {count}.")
            start = int(item) % count
            item = slice(start, start + 1)
        return Instances(self._image_size, **{k: v[item] for k, v in self._fields.items()})

    def __len__(self) -> int:
        if not self._fields:
            raise NotImplementedError("Instances without fields has no length.")
        return len(next(iter(self._fields.values())))

    def __iter__(self) -> NoReturn:
        raise NotImplementedError("Instances is not iterable: iterate over a field, or index it.")

    @staticmethod
    def cat(instance_lists: Sequence["Instances"]) -> "Instances":
        """Concatenate field by field (tensors, lists and types with a ``cat`` method).

        Raises:
            ValueError: nothing to concatenate, different image sizes, or a field of another type.
        """
        if not instance_lists:
            raise ValueError("Instances.cat takes at least one Instances.")
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        sizes = {tuple(x.image_size) for x in instance_lists}
        if len(sizes) > 1:
            raise ValueError(f"Instances.cat takes one image size, got {sorted(sizes)}.")
        joined = Instances(first.image_size)
        for name, value in first.get_fields().items():
            parts = [x.get(name) for x in instance_lists]
            if isinstance(value, torch.Tensor):
                joined.set(name, torch.cat(parts))
            elif isinstance(value, list):
                joined.set(name, list(chain.from_iterable(parts)))
            elif hasattr(type(value), "cat"):
                joined.set(name, type(value).cat(parts))
            else:
                raise ValueError(f"Field {name!r} of type {type(value).__name__} cannot be concatenated.")
        return joined

    def __repr__(self) -> str:
        count = len(self) if self._fields else 0
        height, width = self._image_size
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        return f"Instances(num_instances={count}, image_height={height}, image_width={width}, fields=[{fields}])"
