"""Meta-architectures of dyn_d2; importing registers them."""

from .classifier import ImageClassifier
from .dynamic import (
    DynamicModel,
    DynamicRCNN,
    DynamicRetinaMask,
    DynamicRetinaNet,
    DynamicSegmentor,
    find_policy,
    gated_network,
)
from .fsrw import FSRW
from .hierarchical import HierarchicalSegmentor
from .layer_cascade import LayerCascadeSegmentor
from .lstd import LSTDYOLOv2
from .meta_rcnn import MetaRCNN
from .multipath import MultiPathClassifier
from .retina_mask import RetinaMask
from .tafe_net import TAFENet
from .yolo import YOLOv2

__all__ = [
    "FSRW",
    "DynamicModel",
    "DynamicRCNN",
    "DynamicRetinaMask",
    "DynamicRetinaNet",
    "DynamicSegmentor",
    "HierarchicalSegmentor",
    "ImageClassifier",
    "LSTDYOLOv2",
    "LayerCascadeSegmentor",
    "MetaRCNN",
    "MultiPathClassifier",
    "RetinaMask",
    "TAFENet",
    "YOLOv2",
    "find_policy",
    "gated_network",
]
