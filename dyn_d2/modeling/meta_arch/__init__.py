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
from .retina_mask import RetinaMask
from .tafe_net import TAFENet

__all__ = [
    "DynamicModel",
    "DynamicRCNN",
    "DynamicRetinaMask",
    "DynamicRetinaNet",
    "DynamicSegmentor",
    "HierarchicalSegmentor",
    "ImageClassifier",
    "LayerCascadeSegmentor",
    "RetinaMask",
    "TAFENet",
    "find_policy",
    "gated_network",
]
