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
from .hierarchical import HierarchicalSegmentor
from .layer_cascade import LayerCascadeSegmentor
from .multipath import MultiPathClassifier
from .retina_mask import RetinaMask

__all__ = [
    "DynamicModel",
    "DynamicRCNN",
    "DynamicRetinaMask",
    "DynamicRetinaNet",
    "DynamicSegmentor",
    "HierarchicalSegmentor",
    "ImageClassifier",
    "LayerCascadeSegmentor",
    "MultiPathClassifier",
    "RetinaMask",
    "find_policy",
    "gated_network",
]
