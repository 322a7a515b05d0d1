"""Semantic segmentation heads of dyn_d2; importing registers them."""

from .layer_cascade import LayerCascadeHead

__all__ = ["LayerCascadeHead"]
