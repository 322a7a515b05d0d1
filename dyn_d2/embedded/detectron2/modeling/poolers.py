"""Pooling of regions of interest from one feature map or from a pyramid."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import RoIPool

from detectron2.layers import ROIAlign, cat
from detectron2.left_out import left_out
from detectron2.structures import Boxes


def assign_boxes_to_levels(
    box_lists: list[Boxes], min_level: int, max_level: int, canonical_box_size: int, canonical_level: int
) -> Tensor:
    """Choose the pyramid level for each box: floor(k0 + log2(sqrt(area) / size0)) (Eq. 1 of the FPN paper).

    Args:
        box_lists: the boxes of each image, in pixels of the network's input.
        min_level, max_level: finest and coarsest level; level k has stride 2**k.
        canonical_box_size: size0, the side of a box that belongs on ``canonical_level``.
        canonical_level: k0.

    Returns:
        (M,) int64, level minus ``min_level``, for the M boxes of all images in order.
    """
    sides = cat([boxes.area() for boxes in box_lists]).sqrt()
    levels = torch.floor(canonical_level + torch.log2(sides / canonical_box_size + 1e-8))
    # An inverted box has no side (NaN); like an empty one it goes to the finest level.
    return levels.nan_to_num(nan=min_level).clamp(min_level, max_level).to(torch.int64) - min_level


def convert_boxes_to_pooler_format(box_lists: list[Boxes]) -> Tensor:
    """Join the boxes of all images into (M, 5): index of the image, x1, y1, x2, y2."""
    boxes = torch.cat([boxes.tensor for boxes in box_lists])
    index = torch.cat([boxes.tensor.new_full((len(boxes), 1), i) for i, boxes in enumerate(box_lists)])
    return torch.cat([index, boxes], dim=1)


def _level_pooler(pooler_type: str, output_size: tuple[int, int], scale: float, sampling_ratio: int) -> nn.Module:
    if pooler_type == "ROIPool":
        return RoIPool(output_size, spatial_scale=scale)
    if pooler_type in ("ROIAlign", "ROIAlignV2"):
        return ROIAlign(output_size, scale, sampling_ratio, aligned=pooler_type == "ROIAlignV2")
    if pooler_type == "ROIAlignRotated":
        raise left_out("pooler type ROIAlignRotated", "rotated boxes")
    raise ValueError(f"pooler type {pooler_type!r} is unknown: use ROIAlignV2, ROIAlign or ROIPool")


class ROIPooler(nn.Module):
    """Crops every box from the feature map that fits its size and resamples it to a fixed size."""

    def __init__(
        self,
        output_size: int | Sequence[int],
        scales: Sequence[float],
        sampling_ratio: int,
        pooler_type: str,
        canonical_box_size: int = 224,
        canonical_level: int = 4,
    ) -> None:
        """
        Args:
            output_size: side, or (height, width), of the result.
            scales: 1 / stride of each feature map; strides are powers of two and double from map to map.
            sampling_ratio: points per bin and axis for ROIAlign; 0 adapts it to the box.
            pooler_type: "ROIAlignV2" (half-pixel correct), "ROIAlign" (the older one) or "ROIPool".
            canonical_box_size, canonical_level: see :func:`assign_boxes_to_levels`.

        Raises:
            ValueError: the type is unknown, or the scales form no pyramid.
        """
        super().__init__()
        self.output_size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
        levels = [-math.log2(scale) for scale in scales]
        self.min_level, self.max_level = round(levels[0]), round(levels[-1])
        pyramid = range(self.min_level, self.max_level + 1)
        if not (
            self.min_level >= 0
            and len(pyramid) == len(levels)
            and all(math.isclose(a, b, abs_tol=1e-9) for a, b in zip(levels, pyramid, strict=True))
        ):
            raise ValueError(f"ROI pooling needs strides that are powers of two and double, got scales {list(scales)}")
        self.level_poolers = nn.ModuleList(
            _level_pooler(pooler_type, self.output_size, scale, sampling_ratio) for scale in scales
        )
        self.canonical_box_size = canonical_box_size
        self.canonical_level = canonical_level

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Pool the M boxes of all N images.

        Args:
            x: feature maps (N, C, Hi, Wi), one per scale.
            box_lists: the boxes of each of the N images, in pixels of the network's input.

        Returns:
            (M, C, height, width) in the order of the boxes.

        Raises:
            ValueError: the number of feature maps or images does not fit.
        """
        if len(x) != len(self.level_poolers) or len(box_lists) != x[0].shape[0]:
            raise ValueError(
                f"ROI pooling got {len(x)} feature maps for {len(self.level_poolers)} scales and boxes of "
                f"{len(box_lists)} images for features of {x[0].shape[0]}"
            )
        if len(box_lists) == 0:
            return x[0].new_zeros(0, x[0].shape[1], *self.output_size)
        rois = convert_boxes_to_pooler_format(box_lists)
        if len(x) == 1:
            return self.level_poolers[0](x[0], rois)
        levels = assign_boxes_to_levels(
            box_lists, self.min_level, self.max_level, self.canonical_box_size, self.canonical_level
        )
        # Boxes are sorted by level, pooled and put back. Every level pools, if only an empty list, so that each
        # feature map has a gradient (distributed training waits for it).
        order = levels.argsort(stable=True)
        counts = (levels == torch.arange(len(x), device=levels.device)[:, None]).sum(dim=1).tolist()
        parts = zip(self.level_poolers, x, rois[order].split(counts), strict=True)
        pooled = torch.cat([pooler(feature, part) for pooler, feature, part in parts])
        return torch.empty_like(pooled).index_copy_(0, order, pooled)
