"""Evaluators of dyn_d2 and the record that every evaluation leaves."""

from .build import build_evaluator
from .few_shot import FewShotCOCOEvaluator, FewShotLVISEvaluator, FewShotVOCEvaluator, group_metrics

__all__ = [
    "FewShotCOCOEvaluator",
    "FewShotLVISEvaluator",
    "FewShotVOCEvaluator",
    "build_evaluator",
    "group_metrics",
]
