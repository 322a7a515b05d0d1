"""Semantic segmentation heads of dyn_d2; importing registers them."""

from .dsspn import DSSPNHead
from .layer_cascade import LayerCascadeHead

__all__ = ["DSSPNHead", "LayerCascadeHead"]
