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
from .retina_mask import RetinaMask

__all__ = [
    "DynamicModel",
    "DynamicRCNN",
    "DynamicRetinaMask",
    "DynamicRetinaNet",
    "DynamicSegmentor",
    "HierarchicalSegmentor",
    "ImageClassifier",
    "RetinaMask",
    "find_policy",
    "gated_network",
]
