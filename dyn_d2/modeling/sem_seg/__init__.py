"""Semantic segmentation heads of dyn_d2; importing registers them."""

from .dsspn import DSSPNHead
from .layer_cascade import LayerCascadeHead
from .pmn_head import PMNHead

__all__ = ["DSSPNHead", "LayerCascadeHead", "PMNHead"]
