"""ROI heads of dyn_d2; importing registers them."""

from .cosine_box import CosineOutputLayers, DynRes5ROIHeads, DynROIHeads

__all__ = ["CosineOutputLayers", "DynROIHeads", "DynRes5ROIHeads"]
