"""Semantic segmentation heads of dyn_d2; importing registers them."""

from .pmn_head import PMNHead

__all__ = ["PMNHead"]
