"""Boxes of YOLOv2: predicted by each anchor of each grid cell, in units of cells, as centre and size."""

import torch
from torch import Tensor


def decode(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Boxes from the network's outputs (YOLO9000, sec. 2).

    x = sigmoid(tx) + cx, y = sigmoid(ty) + cy, w = aw exp(tw), h = ah exp(th), with (cx, cy) the cell's number.

    Args:
        offsets: (..., A, 4, H, W) tx, ty, tw, th.
        anchors: (A, 2) widths and heights in cells.

    Returns:
        (..., A, H, W, 4) centre x, centre y, width, height in cells.
    """
    height, width = offsets.shape[-2:]
    tx, ty, tw, th = offsets.unbind(-3)
    columns = torch.arange(width, device=offsets.device, dtype=offsets.dtype)
    rows = torch.arange(height, device=offsets.device, dtype=offsets.dtype)[:, None]
    wide, high = anchors.to(offsets).T[:, :, None, None]
    return torch.stack([tx.sigmoid() + columns, ty.sigmoid() + rows, wide * tw.exp(), high * th.exp()], dim=-1)


def to_corners(boxes: Tensor) -> Tensor:
    """(..., 4) centre and size to x0, y0, x1, y1."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def pairwise_iou_cxcywh(first: Tensor, second: Tensor) -> Tensor:
    """IoU of boxes given by centre and size; the leading dimensions of (..., 4) and (..., 4) broadcast."""
    a, b = to_corners(first), to_corners(second)
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    common = (high - low).clamp(min=0).prod(-1)
    return common / (first[..., 2:].prod(-1) + second[..., 2:].prod(-1) - common).clamp(min=1e-9)


def shape_iou(sizes: Tensor, anchors: Tensor) -> Tensor:
    """(M, A) IoU of (M, 2) sizes and (A, 2) anchors that share their centre."""
    common = torch.minimum(sizes[:, None], anchors[None]).prod(-1)
    return common / (sizes.prod(-1)[:, None] + anchors.prod(-1)[None] - common).clamp(min=1e-9)
