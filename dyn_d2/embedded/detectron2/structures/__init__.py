# ruff: noqa: F401
"""What goes into and comes out of a detector."""

from detectron2.left_out import refusal_of

from .boxes import Boxes, BoxMode, matched_pairwise_iou, pairwise_intersection, pairwise_ioa, pairwise_iou
from .image_list import ImageList
from .instances import Instances
from .masks import BitMasks, PolygonMasks, ROIMasks, polygons_to_bitmask

__getattr__ = refusal_of(__name__)
