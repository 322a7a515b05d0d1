"""Pasting the fixed-size masks of a mask head back into the image."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:  # structures import this module
    from detectron2.structures import Boxes


# Float pixels pasted at once on a GPU (1 GB); on a CPU masks go one by one, each within its own box.
GPU_PIXELS = 2**28


def _cell_positions(start: Tensor, end: Tensor, length: int, size: int) -> Tensor:
    """Where the pixel centres along one image axis lie within masks of ``size`` cells that span start..end.

    Returns:
        (N, length), in mask cells: 0 is the centre of the first cell. Rounded as F.grid_sample rounds, so that ties at
        the threshold (binary masks have many) fall to the same side.
    """
    centre = torch.arange(length, device=start.device, dtype=torch.float32) + 0.5
    start, end = start[:, None].float(), end[:, None].float()
    normalised = (centre - start) / (end - start) * 2 - 1
    return (normalised + 1) * (size / 2) - 0.5


def _hat(position: Tensor, size: int) -> Tensor:
    """Weight of each cell at each position: bilinear sampling with zeros outside, along one axis (it is separable)."""
    cells = torch.arange(size, device=position.device, dtype=torch.float32)
    position = position[..., None]
    return torch.minimum((cells + 1) - position, position - (cells - 1)).clamp_(min=0)


def _window(low: float, high: float, size: int) -> tuple[int, int]:
    """Pixels that a box from ``low`` to ``high`` can touch, and one more on both sides, within the image."""
    return max(math.floor(low) - 1, 0), min(math.ceil(high) + 1, size)


@torch.no_grad()
def paste_masks_in_image(
    masks: Tensor, boxes: "Boxes | Tensor", image_shape: tuple[int, int], threshold: float = 0.5
) -> Tensor:
    """Resample each mask into its box with sub-pixel accuracy.

    Args:
        masks: (N, M, M), soft masks in [0, 1].
        boxes: Boxes or (N, 4) XYXY in image coordinates.
        image_shape: (height, width).
        threshold: a pixel is foreground from this value on; a negative one returns the soft masks times 255.

    Returns:
        (N, height, width), bool, or uint8 where ``threshold`` is negative.
    """
    if masks.shape[-1] != masks.shape[-2]:
        raise ValueError(f"paste_masks_in_image takes square masks, got {tuple(masks.shape)}.")
    boxes = boxes if isinstance(boxes, Tensor) else boxes.tensor
    if len(boxes) != len(masks):
        raise ValueError(f"{len(masks)} masks do not fit {len(boxes)} boxes.")
    height, width = (int(size) for size in image_shape)
    soft = threshold < 0
    pasted = torch.zeros(len(masks), height, width, dtype=torch.uint8 if soft else torch.bool, device=boxes.device)
    on_cpu = boxes.device.type == "cpu"
    step = 1 if on_cpu else max(1, GPU_PIXELS // max(1, height * width))
    corners = boxes.tolist() if on_cpu else []
    cells = masks.shape[-1]
    x = _cell_positions(boxes[:, 0], boxes[:, 2], width, cells)
    y = _cell_positions(boxes[:, 1], boxes[:, 3], height, cells)
    with torch.autocast(boxes.device.type, enabled=False):
        masks = masks.float()
        for i in range(0, len(masks), step):
            rows, columns = (0, height), (0, width)
            if on_cpu:
                x0, y0, x1, y1 = corners[i]
                rows, columns = _window(y0, y1, height), _window(x0, x1, width)
            if rows[0] >= rows[1] or columns[0] >= columns[1]:
                continue
            chunk = slice(i, i + step)
            down = _hat(y[chunk, slice(*rows)], cells)
            across = _hat(x[chunk, slice(*columns)], cells)
            values = down @ masks[chunk] @ across.transpose(1, 2)
            target = pasted[chunk, slice(*rows), slice(*columns)]
            if soft:
                target.copy_(values * 255)
            else:
                torch.ge(values, threshold, out=target)
    return pasted
