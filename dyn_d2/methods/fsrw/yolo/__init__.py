"""The parts of YOLOv2 that detectors on DarkNet-19 share: layers, boxes of grid cells, losses."""

from .boxes import decode, pairwise_iou_cxcywh, shape_iou
from .layers import DetectionLayers, output_layer, pointwise
from .loss import Objects, YoloLoss, keep_slots
from .predictions import Predictions, detect

__all__ = [
    "DetectionLayers",
    "Objects",
    "Predictions",
    "YoloLoss",
    "decode",
    "detect",
    "keep_slots",
    "output_layer",
    "pairwise_iou_cxcywh",
    "pointwise",
    "shape_iou",
]
