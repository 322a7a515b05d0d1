"""Feature re-weighting (Kang et al., ICCV 2019): class vectors from support images, shared by FSRW and its Faster R-CNN
form."""

from .net import FORMS, FeatureReweightingNet, ReweightingNet, predict_reweighted, reweight
from .reweighted import ReweightedByClass, build_reweighting, is_reweighted, reweighted_share
from .vectors import FILE, ClassVectors

__all__ = [
    "FILE",
    "FORMS",
    "ClassVectors",
    "FeatureReweightingNet",
    "ReweightedByClass",
    "ReweightingNet",
    "build_reweighting",
    "is_reweighted",
    "predict_reweighted",
    "reweight",
    "reweighted_share",
]
