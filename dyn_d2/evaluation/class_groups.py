"""AP of groups of classes, on top of COCO's evaluator: means of each class's AP over the classes of a group.

A class without ground truth has no AP: it is left out of every mean, and the log says so. AP values are percentages
(0 to 100).

Naming: T IoU thresholds, R recall points, K classes, A area ranges.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from dyn_d2.data.registered import registered_records

from detectron2.data import DatasetCatalog, Metadata
from detectron2.structures import BoxMode

from .checked import CheckedCOCOEvaluator, evaluate_nothing

logger = logging.getLogger(__name__)

# How the metrics of a group are named (a key of TITLES) -> the names of its classes.
ClassGroups = Mapping[str, Sequence[str]]

TITLES = {
    "{}": "all",
    "b{}": "base",
    "n{}": "novel",
    "{}_with_masks": "with masks",
    "{}_without_masks": "without masks",
}

# name -> (index of the IoU threshold or None for the mean over 0.50:0.95, index of the area range)
COCO_METRICS = {"AP": (None, 0), "AP50": (0, 0), "AP75": (5, 0), "APs": (None, 1), "APm": (None, 2), "APl": (None, 3)}


# name -> (index of the limit of detections an image, 1, 10 or 100; index of the area range)
RECALLS = {"AR1": (0, 0), "AR10": (1, 0), "AR100": (2, 0), "ARs": (2, 1), "ARm": (2, 2), "ARl": (2, 3)}


def group_means(per_class: Mapping[str, np.ndarray], classes: Sequence[str], groups: ClassGroups) -> dict[str, float]:
    """Means over all classes and over groups of per-class values.

    Args:
        per_class: metric -> (K,) values in the order of ``classes``, NaN for a class without ground truth.
        classes: names of the classes that were evaluated.
        groups: classes that were not evaluated are ignored.

    Returns:
        Name -> mean over the classes that have a value, NaN where none has. A group of which no class was evaluated
        has no entry. Where bAP and nAP are among them (base and novel classes), "hAP" is their harmonic mean.
    """
    rows = {"{}": list(range(len(classes)))}
    for form, members in groups.items():
        found = [row for row, name in enumerate(classes) if name in set(members)]
        if found:
            rows[form] = found
    result = {}
    for form, chosen in rows.items():
        for metric, values in per_class.items():
            own = np.asarray(values, dtype=float)[chosen]
            result[form.format(metric)] = float(np.nanmean(own)) if np.isfinite(own).any() else float("nan")
    if "bAP" in result and "nAP" in result:
        total = result["bAP"] + result["nAP"]
        result["hAP"] = 2 * result["bAP"] * result["nAP"] / total if total > 0 else 0.0 * total
    return result


def group_results(
    per_class: Mapping[str, np.ndarray],
    metadata: Metadata,
    groups: ClassGroups,
    shown: Sequence[str],
    task: str,
) -> dict[str, float]:
    """:func:`group_means` followed by "METRIC-CLASS" of each class; logs a table, and what has no value.

    Args:
        per_class: as there, of the classes of ``metadata``; the first metric tells which classes have ground truth.
        shown: the metrics to give of each class.
        task: what is measured, for the log.
    """
    classes = list(metadata.thing_classes)
    leading = next(iter(per_class.values()))
    absent = [name for name, value in zip(classes, leading, strict=True) if not np.isfinite(value)]
    if absent:
        logger.warning(
            "%s: %d of %d classes have no ground truth in %s and count in no mean: %s",
            task, len(absent), len(classes), metadata.name, ", ".join(absent),
        )  # fmt: skip
    results = group_means(per_class, classes, groups)
    if groups:
        rows = [
            [TITLES[form], *(f"{results[form.format(metric)]:.2f}" for metric in per_class)]
            for form in ("{}", *groups)
            if form.format(next(iter(per_class))) in results
        ]
        text = tabulate(rows, headers=["classes", *per_class], tablefmt="pipe", disable_numparse=True)
        logger.info("%s of %s by classes:\n%s", task, metadata.name, text)
        zero = [name for name, value in zip(classes, leading, strict=True) if value < 0.05]
        if found_nothing := [name for name in zero if name in metadata.get("novel_classes", ())]:
            base = metadata.get("base_classes", ())
            logger.warning(f"{task}: {why_nothing(metadata, found_nothing, bool(base) and set(base) <= set(zero))}")
    for metric in shown:
        results |= {f"{metric}-{name}": float(value) for name, value in zip(classes, per_class[metric], strict=True)}
    return results


def why_nothing(metadata: Metadata, novel: Sequence[str], nor_base: bool = False) -> str:
    """Why novel classes may have an AP of 0, as far as the data tell, and what to try.

    Args:
        metadata: of the test set.
        nor_base: whether the base classes have an AP of 0 too.
    """
    few_shot = metadata.get("few_shot", None) or {}
    shots = few_shot.get("shots")
    sizes = _middle_sizes(metadata)
    small = [f"{name} {sizes[name]:.0f} pixels" for name in novel if sizes.get(name, math.inf) < 32]
    few = f"{shots} examples of each are few: try a larger FEW_SHOT.SHOTS, or other ones (FEW_SHOT.SEED)"
    unlabelled = (
        "objects of an image that are no shot count as background: try FEW_SHOT.SHOTS_UNIT whole_image, in which K "
        "images of each class are labelled wholly"
    )
    reasons = ["so it is for the base classes: their training was too short, try a longer SOLVER.MAX_ITER"] * nor_base
    reasons += [few] if shots else []
    if shots and few_shot.get("unit") != "whole_image":
        reasons.append(unlabelled)
    if small:
        reasons.append(
            f"their objects are small ({', '.join(small)}, the middle of all): try larger INPUT.MIN_SIZE_TRAIN and "
            "MIN_SIZE_TEST, and smaller MODEL.ANCHOR_GENERATOR.SIZES"
        )
    reasons.append(
        "features and proposals that were learned from the base classes, and frozen, may not find them: try "
        "FEW_SHOT.METHOD ft_heads, which frees all but the backbone, FEW_SHOT.INIT novel, or a longer "
        "FEW_SHOT.FINETUNE.MAX_ITER"
    )
    listed = "".join(f"\n  - {reason}" for reason in reasons)
    return f"AP is 0 for the novel classes {', '.join(novel)}. What may be behind it:{listed}"


def _middle_sizes(metadata: Metadata) -> dict[str, float]:
    """Class -> median of the square root of the boxes' areas in a test set, in pixels of its images."""
    sizes: dict[str, list[float]] = {}
    if metadata.name not in DatasetCatalog.list():
        return {}
    for record in registered_records(metadata.name):
        for annotation in record.get("annotations", ()):
            x0, y0, x1, y1 = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
            name = metadata.thing_classes[annotation["category_id"]]
            sizes.setdefault(name, []).append(math.sqrt(max(0.0, (x1 - x0) * (y1 - y0))))
    return {name: float(np.median(values)) for name, values in sizes.items()}


def _mean_precision(precision: np.ndarray) -> np.ndarray:
    """(T, R, K) precision or recall, -1 where undefined -> (K,) mean in percent, NaN for a class without truth."""
    valid = precision > -1
    count = valid.sum(axis=(0, 1))
    total = np.where(valid, precision, 0.0).sum(axis=(0, 1))
    return np.where(count > 0, 100.0 * total / np.maximum(count, 1), np.nan)


def per_class_metrics(precision: np.ndarray) -> dict[str, np.ndarray]:
    """(T, R, K, A) precision of COCO or LVIS -> metric -> (K,) percent."""
    return {
        name: _mean_precision(precision[..., area] if iou is None else precision[iou : iou + 1, ..., area])
        for name, (iou, area) in COCO_METRICS.items()
    }


def per_class_recalls(recall: np.ndarray) -> dict[str, np.ndarray]:
    """(T, K, A, M) recall of COCO, M limits of detections an image and class -> metric -> (K,) percent, NaN for a class
    without ground truth of that size."""
    return {
        name: _mean_precision(recall[:, None, :, area, limit])
        for name, (limit, area) in RECALLS.items()
        if limit < recall.shape[-1]
    }


class GroupedCOCOEvaluator(CheckedCOCOEvaluator):
    """COCOEvaluator that adds each group's AP and average recall (AR) to boxes and masks.

    The detector emits up to 100 objects an image over all its classes; a group's AP is COCO's AP restricted to the
    group's categories.
    """

    def __init__(self, dataset_name: str, *args: Any, groups: ClassGroups, **options: Any) -> None:
        """
        Args:
            args, options: of COCOEvaluator.
        """
        super().__init__(dataset_name, *args, **options)
        self._groups = groups

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        if coco_eval is None:
            coco_eval = evaluate_nothing(self._coco_api, iou_type)
        results = super()._derive_coco_results(coco_eval, iou_type, class_names=class_names)
        if iou_type not in ("bbox", "segm"):
            return results
        per_class = per_class_metrics(coco_eval.eval["precision"][..., -1])
        per_class |= per_class_recalls(coco_eval.eval["recall"])
        return group_results(per_class, self._metadata, self._groups, ("AP",), iou_type)
