"""Layers under Detectron2's names; torchvision and fvcore do the work."""

from .aspp import ASPP
from .batch_norm import CycleBatchNormList, FrozenBatchNorm2d, NaiveSyncBatchNorm, get_norm
from .blocks import CNNBlockBase, DepthwiseSeparableConv2d
from .losses import ciou_loss, diou_loss
from .mask_ops import paste_masks_in_image
from .nms import batched_nms, nms
from .roi_align import ROIAlign, roi_align
from .shape_spec import ShapeSpec
from .wrappers import (
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    Linear,
    cat,
    cross_entropy,
    empty_input_loss_func_wrapper,
    interpolate,
    move_device_like,
    nonzero_tuple,
    shapes_to_tensor,
)

__all__ = [
    "ASPP",
    "BatchNorm2d",
    "CNNBlockBase",
    "Conv2d",
    "ConvTranspose2d",
    "CycleBatchNormList",
    "DepthwiseSeparableConv2d",
    "FrozenBatchNorm2d",
    "Linear",
    "NaiveSyncBatchNorm",
    "ROIAlign",
    "ShapeSpec",
    "batched_nms",
    "cat",
    "ciou_loss",
    "cross_entropy",
    "diou_loss",
    "empty_input_loss_func_wrapper",
    "get_norm",
    "interpolate",
    "move_device_like",
    "nms",
    "nonzero_tuple",
    "paste_masks_in_image",
    "roi_align",
    "shapes_to_tensor",
]

_LEFT_OUT = {
    "DeformConv": "deformable convolution",
    "ModulatedDeformConv": "deformable convolution",
    "ROIAlignRotated": "rotated boxes",
    "roi_align_rotated": "rotated boxes",
    "nms_rotated": "rotated boxes",
    "batched_nms_rotated": "rotated boxes",
}


def __getattr__(name: str):
    if name in _LEFT_OUT:
        raise ImportError(
            f"detectron2.layers.{name}: the embedded engine leaves out {_LEFT_OUT[name]}; "
            "install Detectron2 itself to use it."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
