# ruff: noqa: F401, I001
"""Heads that work on each region, and their registries."""

from detectron2.left_out import refusal_of

from .box_head import ROI_BOX_HEAD_REGISTRY, FastRCNNConvFCHead, build_box_head
from .fast_rcnn import FastRCNNOutputLayers
from .mask_head import ROI_MASK_HEAD_REGISTRY, BaseMaskRCNNHead, MaskRCNNConvUpsampleHead, build_mask_head
from .roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads, ROIHeads, StandardROIHeads
from .roi_heads import build_roi_heads, select_foreground_proposals

__getattr__ = refusal_of(__name__)
