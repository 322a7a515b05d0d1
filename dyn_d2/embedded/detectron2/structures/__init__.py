"""What goes into and comes out of a detector."""

from .boxes import (
    Boxes,
    BoxMode,
    matched_pairwise_iou,
    pairwise_intersection,
    pairwise_ioa,
    pairwise_iou,
    pairwise_point_box_distance,
)
from .image_list import ImageList
from .instances import Instances
from .masks import BitMasks, PolygonMasks, ROIMasks, polygons_to_bitmask

__all__ = [
    "BitMasks",
    "BoxMode",
    "Boxes",
    "ImageList",
    "Instances",
    "PolygonMasks",
    "ROIMasks",
    "matched_pairwise_iou",
    "pairwise_intersection",
    "pairwise_ioa",
    "pairwise_iou",
    "pairwise_point_box_distance",
    "polygons_to_bitmask",
]

_LEFT_OUT = {
    "Keypoints": "keypoints",
    "heatmaps_to_keypoints": "keypoints",
    "RotatedBoxes": "rotated boxes",
    "pairwise_iou_rotated": "rotated boxes",
}


def __getattr__(name: str):
    if name in _LEFT_OUT:
        raise ImportError(
            f"detectron2.structures.{name}: the embedded engine leaves out {_LEFT_OUT[name]}; "
            "install Detectron2 itself to use it."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
