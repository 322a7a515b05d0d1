"""Evaluators of dyn_d2 and the record that every evaluation leaves."""

from .build import build_evaluator, prepare_evaluation, with_evaluators_of_model
from .class_groups import GroupedCOCOEvaluator, group_means
from .concept_levels import ConceptLevelEvaluator
from .few_shot import FewShotLVISEvaluator, FewShotVOCEvaluator

__all__ = [
    "ConceptLevelEvaluator",
    "FewShotLVISEvaluator",
    "FewShotVOCEvaluator",
    "GroupedCOCOEvaluator",
    "build_evaluator",
    "group_means",
    "prepare_evaluation",
    "with_evaluators_of_model",
]
