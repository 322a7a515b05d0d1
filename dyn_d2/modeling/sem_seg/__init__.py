"""Semantic segmentation heads of dyn_d2; importing registers them."""

from .dsspn import DSSPNHead

__all__ = ["DSSPNHead"]
