"""Meta-architectures over any gated backbone; importing registers them."""

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

__all__ = [
    "DynamicModel",
    "DynamicRCNN",
    "DynamicRetinaMask",
    "DynamicRetinaNet",
    "DynamicSegmentor",
    "ImageClassifier",
    "find_policy",
    "gated_network",
]
