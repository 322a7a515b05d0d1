"""Evaluators of dyn_d2 and the record that every evaluation leaves."""

from dyn_d2.gating.reports.routes import RouteEvaluator, RouteTable
from dyn_d2.methods.shapeprop.evaluator import ShapeQualityEvaluator

from .build import build_evaluator, with_routes
from .class_groups import GroupedCOCOEvaluator, group_means
from .concept_levels import ConceptLevelEvaluator
from .few_shot import FewShotLVISEvaluator, FewShotVOCEvaluator

__all__ = [
    "ConceptLevelEvaluator",
    "FewShotLVISEvaluator",
    "FewShotVOCEvaluator",
    "GroupedCOCOEvaluator",
    "RouteEvaluator",
    "RouteTable",
    "ShapeQualityEvaluator",
    "build_evaluator",
    "group_means",
    "with_routes",
]
