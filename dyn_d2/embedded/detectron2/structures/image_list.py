"""Images of different sizes in one padded tensor."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class ImageList:
    """A batch, (N, ..., H, W), and the (height, width) that each image had before padding at its right and bottom."""

    def __init__(self, tensor: Tensor, image_sizes: Sequence[tuple[int, int]]):
        self.tensor = tensor
        self.image_sizes = image_sizes

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> Tensor:
        """One image, without its padding."""
        height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :height, :width]

    def to(self, *args: Any, **kwargs: Any) -> "ImageList":
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @staticmethod
    def from_tensors(
        tensors: Sequence[Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: dict[str, int] | None = None,
    ) -> "ImageList":
        """Pad to the largest height and width of the batch.

        Args:
            tensors: each (..., Hi, Wi), with the same leading sizes.
            size_divisibility: the padded sides become multiples of it (0 and 1: no constraint).
            padding_constraints: may hold "size_divisibility", which overrides the argument, and "square_size": pad to
                this square instead of to the largest image.

        Raises:
            ValueError: no images, different leading sizes, or an image larger than "square_size".
        """
        if not tensors or len({tuple(t.shape[:-2]) for t in tensors}) > 1:
            raise ValueError(f"ImageList takes images of equal channels, got {[tuple(t.shape) for t in tensors]}.")
        constraints = padding_constraints or {}
        sizes = [(t.shape[-2], t.shape[-1]) for t in tensors]
        target = [max(side) for side in zip(*sizes, strict=True)]
        square = constraints.get("square_size", 0)
        if square > 0:
            if max(target) > square:
                raise ValueError(f"An image of {target} pixels does not fit square_size={square}.")
            target = [square, square]
        divisor = max(constraints.get("size_divisibility", size_divisibility), 1)
        height, width = (-(-side // divisor) * divisor for side in target)
        if len(tensors) == 1:
            (image,), ((h, w),) = tensors, sizes
            return ImageList(F.pad(image, (0, width - w, 0, height - h), value=pad_value)[None].contiguous(), sizes)
        batch = tensors[0].new_full((len(tensors), *tensors[0].shape[:-2], height, width), pad_value)
        for slot, image, (h, w) in zip(batch, tensors, sizes, strict=True):
            slot[..., :h, :w].copy_(image)
        return ImageList(batch, sizes)
