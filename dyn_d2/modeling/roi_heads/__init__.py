"""ROI heads of dyn_d2; importing registers them."""

from .cosine_box import CosineOutputLayers, DynRes5ROIHeads, DynROIHeads
from .mask_only import MaskROIHeads, ShapePropMaskROIHeads
from .partial_mask import PartialMaskHead
from .shapeprop import ShapeProp, ShapePropROIHeads
from .weight_transfer import WeightTransferMaskHead

__all__ = [
    "CosineOutputLayers",
    "DynROIHeads",
    "DynRes5ROIHeads",
    "MaskROIHeads",
    "PartialMaskHead",
    "ShapeProp",
    "ShapePropMaskROIHeads",
    "ShapePropROIHeads",
    "WeightTransferMaskHead",
]
