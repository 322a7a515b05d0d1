"""Evaluators of dyn_d2 and the record that every evaluation leaves."""

from .build import build_evaluator, with_routes
from .few_shot import FewShotCOCOEvaluator, FewShotLVISEvaluator, FewShotVOCEvaluator, group_metrics
from .routes import RouteEvaluator, RouteTable

__all__ = [
    "FewShotCOCOEvaluator",
    "FewShotLVISEvaluator",
    "FewShotVOCEvaluator",
    "RouteEvaluator",
    "RouteTable",
    "build_evaluator",
    "group_metrics",
    "with_routes",
]
