"""What the containers that hold one tensor share."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


class TensorRows:
    """N things in the rows of ``tensor``. The constructor of a subclass takes such a tensor, and checks it."""

    tensor: Tensor

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def to(self, *args: Any, **kwargs: Any) -> "TensorRows":
        return type(self)(self.tensor.to(*args, **kwargs))

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        """Yield one tensor per row, without the first dimension."""
        yield from self.tensor

    def __getitem__(self, item: Any) -> "TensorRows":
        """Rows selected by an int (one row), slice, index vector or boolean mask; may share memory with these."""
        rows = self.tensor[item]
        if isinstance(item, int):
            rows = rows[None]
        if rows.dim() != self.tensor.dim():
            raise IndexError(f"Indexing {type(self).__name__} with {item} gives shape {tuple(rows.shape)}, not rows.")
        return type(self)(rows)

    @classmethod
    def cat(cls, rows_list: Sequence["TensorRows"]) -> "TensorRows":
        """One after another, in new memory."""
        return cls(torch.cat([rows.tensor for rows in rows_list]))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)})"
