"""Axis-aligned boxes: their representations, a container, and pairwise measures."""

from collections.abc import Sequence
from enum import IntEnum, unique
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detectron2.left_out import left_out

from .tensor_rows import TensorRows


@unique
class BoxMode(IntEnum):
    """How four (or five) numbers describe a box. ABS is in pixels, REL in fractions of the image's size."""

    XYXY_ABS = 0
    XYWH_ABS = 1
    XYXY_REL = 2
    XYWH_REL = 3
    XYWHA_ABS = 4

    @staticmethod
    def convert(box: Any, from_mode: "BoxMode", to_mode: "BoxMode") -> Any:
        """Convert between XYXY_ABS and XYWH_ABS.

        Args:
            box: one box as a list or tuple of 4 numbers, or an array or tensor whose last axis has 4.

        Returns:
            A new box of the same type (``box`` itself where both modes are the same).

        Raises:
            NotImplementedError: relative or rotated boxes.
            ValueError: not 4 numbers.
        """
        if from_mode == to_mode:
            return box
        names = BoxMode(from_mode).name, BoxMode(to_mode).name
        if BoxMode.XYWHA_ABS in (from_mode, to_mode):
            raise left_out(f"{names[0]} to {names[1]}", "rotated boxes")
        if set(names) != {"XYXY_ABS", "XYWH_ABS"}:
            raise NotImplementedError(f"{names[0]} to {names[1]}: relative boxes need an image size.")
        sign = 1 if from_mode == BoxMode.XYWH_ABS else -1
        if isinstance(box, (list, tuple)):
            if len(box) != 4:
                raise ValueError(f"A {names[0]} box has 4 numbers, got {len(box)}: {box}.")
            x, y, a, b = box
            return type(box)((x, y, a + sign * x, b + sign * y))
        box = box.clone() if isinstance(box, Tensor) else np.array(box)
        if box.shape[-1] != 4:
            raise ValueError(f"{names[0]} boxes have 4 numbers each, got an array of shape {tuple(box.shape)}.")
        box[..., 2:] += sign * box[..., :2]
        return box


class Boxes(TensorRows):
    """N boxes in the rows (x0, y0, x1, y1) of one float32 matrix, ``tensor``."""

    def __init__(self, tensor: Tensor | Sequence | np.ndarray):
        tensor = torch.as_tensor(tensor).to(torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(-1, 4)
        if tensor.dim() != 2 or tensor.size(-1) != 4:
            raise ValueError(f"Boxes takes an (N, 4) matrix, got shape {tuple(tensor.shape)}.")
        self.tensor = tensor

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"

    def clone(self) -> "Boxes":
        return Boxes(self.tensor.clone())

    @classmethod
    def cat(cls, boxes_list: Sequence["Boxes"]) -> "Boxes":
        """One after another, in new memory; no boxes for an empty list."""
        return super().cat(boxes_list) if boxes_list else cls([])

    def area(self) -> Tensor:
        """(N,) products of the sides."""
        width, height = (self.tensor[:, 2:] - self.tensor[:, :2]).unbind(1)
        return width * height

    def get_centers(self) -> Tensor:
        """(N, 2) as (x, y)."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """(N,) bool: both sides are longer than ``threshold``."""
        return (self.tensor[:, 2:] - self.tensor[:, :2] > threshold).all(dim=1)

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> Tensor:
        """(N,) bool: within an image of ``box_size`` (height, width) widened by ``boundary_threshold`` on all sides."""
        height, width = box_size
        upper = self.tensor.new_tensor([width, height]) + boundary_threshold
        low, high = self.tensor[..., :2], self.tensor[..., 2:]
        return (low >= -boundary_threshold).all(-1) & (high < upper).all(-1)

    def clip(self, box_size: tuple[int, int]) -> None:
        """Limit coordinates, in place, to an image of ``box_size`` (height, width).

        Raises:
            ValueError: a coordinate is infinite or NaN.
        """
        if not torch.isfinite(self.tensor).all():
            raise ValueError("Box tensor contains infinite or NaN!")
        height, width = box_size
        x, y = self.tensor[:, 0::2].clamp(0, width), self.tensor[:, 1::2].clamp(0, height)
        self.tensor = torch.stack((x, y), dim=2).flatten(1)

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply coordinates in place."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection areas of broadcast XYXY boxes (..., 4)."""
    sides = torch.min(a[..., 2:], b[..., 2:]) - torch.max(a[..., :2], b[..., :2])
    width, height = sides.clamp_(min=0).unbind(-1)
    return width * height


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M) areas of overlap."""
    return _overlap(boxes1.tensor[:, None], boxes2.tensor)


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M) intersection over union; 0 where boxes do not overlap, so that empty boxes give 0."""
    inter = pairwise_intersection(boxes1, boxes2)
    union = boxes1.area()[:, None] + boxes2.area() - inter
    return torch.where(inter > 0, inter / union, inter.new_zeros(()))


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M) intersection over the area of ``boxes2``."""
    inter = pairwise_intersection(boxes1, boxes2)
    return torch.where(inter > 0, inter / boxes2.area(), inter.new_zeros(()))


def matched_pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N,) IoU of the i-th box of one with the i-th of the other."""
    if len(boxes1) != len(boxes2):
        raise ValueError(f"matched_pairwise_iou takes as many boxes on both sides, got {len(boxes1)}, {len(boxes2)}.")
    inter = _overlap(boxes1.tensor, boxes2.tensor)
    return inter / (boxes1.area() + boxes2.area() - inter)
