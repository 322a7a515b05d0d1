"""Evaluators, and the loop that feeds them."""

from .cityscapes_evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from .coco_evaluation import COCOEvaluator
from .evaluator import DatasetEvaluator, DatasetEvaluators, inference_context, inference_on_dataset
from .lvis_evaluation import LVISEvaluator
from .pascal_voc_evaluation import PascalVOCDetectionEvaluator
from .sem_seg_evaluation import SemSegEvaluator
from .testing import print_csv_format, verify_results

__all__ = [
    "COCOEvaluator",
    "CityscapesInstanceEvaluator",
    "CityscapesSemSegEvaluator",
    "DatasetEvaluator",
    "DatasetEvaluators",
    "LVISEvaluator",
    "PascalVOCDetectionEvaluator",
    "SemSegEvaluator",
    "inference_context",
    "inference_on_dataset",
    "print_csv_format",
    "verify_results",
]

_LEFT_OUT = {"COCOPanopticEvaluator": "panoptic segmentation", "RotatedCOCOEvaluator": "rotated boxes"}


def __getattr__(name: str):
    if name in _LEFT_OUT:
        raise ImportError(
            f"detectron2.evaluation.{name}: the embedded engine leaves out {_LEFT_OUT[name]}; "
            "install Detectron2 itself to use it."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
