# ruff: noqa: F401
"""Layers under Detectron2's names; torchvision and fvcore do the work."""

from detectron2.left_out import refusal_of

from .batch_norm import CycleBatchNormList, FrozenBatchNorm2d, NaiveSyncBatchNorm, get_norm
from .blocks import CNNBlockBase
from .mask_ops import paste_masks_in_image
from .nms import batched_nms, nms
from .roi_align import ROIAlign, roi_align
from .shape_spec import ShapeSpec
from .wrappers import BatchNorm2d, Conv2d, ConvTranspose2d, Linear, cat, cross_entropy, interpolate, nonzero_tuple

__getattr__ = refusal_of(__name__)
