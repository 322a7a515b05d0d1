"""Meta-architectures of dyn_d2; importing registers them."""

from .classifier import ImageClassifier
from .dynamic import DynamicModel, DynamicRCNN, DynamicRetinaNet, DynamicSegmentor, find_policy, gated_network

__all__ = [
    "DynamicModel",
    "DynamicRCNN",
    "DynamicRetinaNet",
    "DynamicSegmentor",
    "ImageClassifier",
    "find_policy",
    "gated_network",
]
