"""ROI heads that several methods build on; importing registers them."""

from .classifier_by_name import BOX_CLASSIFIERS, DynRes5ROIHeads, DynROIHeads
from .mask_only import MaskROIHeads
from .partial_mask import PartialMaskHead

__all__ = ["BOX_CLASSIFIERS", "DynROIHeads", "DynRes5ROIHeads", "MaskROIHeads", "PartialMaskHead"]
