"""Average precision of all, base (b) and novel (n) classes, on top of Detectron2's evaluators.

Which class is base or novel comes from the data set's metadata (``base_classes``, ``novel_classes``), never from its
name. AP values are percentages (0 to 100). A class without ground truth has no AP: it is left out of every mean, and
the log says so.

Naming: T IoU thresholds, R recall points, K classes, A area ranges.
"""

import logging
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, LVISEvaluator, PascalVOCDetectionEvaluator
from detectron2.evaluation.pascal_voc_evaluation import voc_eval
from detectron2.utils import comm

logger = logging.getLogger(__name__)

# name -> (index of the IoU threshold or None for the mean over 0.50:0.95, index of the area range)
_COCO_METRICS = {"AP": (None, 0), "AP50": (0, 0), "AP75": (5, 0), "APs": (None, 1), "APm": (None, 2), "APl": (None, 3)}


def group_metrics(
    per_class: Mapping[str, np.ndarray], classes: Sequence[str], base: Sequence[str], novel: Sequence[str]
) -> dict[str, float]:
    """Means over all, base and novel classes of per-class values.

    Args:
        per_class: metric -> (K,) values in the order of ``classes``, NaN for a class without ground truth.
        classes: names of the classes that were evaluated.
        base, novel: names; those that were not evaluated are ignored.

    Returns:
        metric, "b" + metric, "n" + metric -> mean over the classes that have a value, NaN where none has; and "hAP",
        the harmonic mean of bAP and nAP. A group of which no class was evaluated has no entry.
    """
    groups = {"": list(range(len(classes)))}
    for prefix, members in (("b", set(base)), ("n", set(novel))):
        rows = [row for row, name in enumerate(classes) if name in members]
        if rows:
            groups[prefix] = rows
    result = {
        prefix + metric: float(np.nanmean(values[rows])) if np.isfinite(values[rows]).any() else float("nan")
        for prefix, rows in groups.items()
        for metric, values in ((metric, np.asarray(values, dtype=float)) for metric, values in per_class.items())
    }
    if "bAP" in result and "nAP" in result:
        total = result["bAP"] + result["nAP"]
        result["hAP"] = 2 * result["bAP"] * result["nAP"] / total if total > 0 else 0.0 * total
    return result


def _finish(
    per_class: Mapping[str, np.ndarray], metadata, shown: Sequence[str], iou_type: str = "bbox"
) -> dict[str, float]:
    """Group means followed by "AP-name" per class; explains in the log what has no value."""
    classes = list(metadata.thing_classes)
    base, novel = metadata.get("base_classes", ()), metadata.get("novel_classes", ())
    absent = [name for name, value in zip(classes, per_class["AP"], strict=True) if not np.isfinite(value)]
    if absent:
        logger.warning(
            "%s: %d of %d classes have no ground truth in %s and count in no mean: %s",
            iou_type, len(absent), len(classes), metadata.name, ", ".join(absent),
        )  # fmt: skip
    if novel and not set(novel) & set(classes):
        logger.info("novel classes: not predicted (this evaluation covers base classes only)")
    results = group_metrics(per_class, classes, base, novel)
    for metric in shown:
        results |= {f"{metric}-{name}": float(value) for name, value in zip(classes, per_class[metric], strict=True)}
    return results


def _mean_precision(precision: np.ndarray) -> np.ndarray:
    """(T, R, K) precision, -1 where undefined -> (K,) mean in percent, NaN for a class without ground truth."""
    valid = precision > -1
    count = valid.sum(axis=(0, 1))
    total = np.where(valid, precision, 0.0).sum(axis=(0, 1))
    return np.where(count > 0, 100.0 * total / np.maximum(count, 1), np.nan)


def _per_class(precision: np.ndarray) -> dict[str, np.ndarray]:
    """(T, R, K, A) precision of COCO or LVIS -> metric -> (K,) percent."""
    return {
        name: _mean_precision(precision[..., area] if iou is None else precision[iou : iou + 1, ..., area])
        for name, (iou, area) in _COCO_METRICS.items()
    }


class FewShotCOCOEvaluator(COCOEvaluator):
    """COCOEvaluator that adds base and novel AP to boxes and masks.

    The detector emits up to 100 objects an image over all its classes; a group's AP is COCO's AP restricted to the
    group's categories (the protocol of Kang et al. 2019 and TFA).
    """

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        results = super()._derive_coco_results(coco_eval, iou_type, class_names=class_names)
        if iou_type not in ("bbox", "segm"):
            return results
        if coco_eval is None:
            # Without a single detection pycocotools is not run. The precision of what was not found is 0.
            present = {ann["category_id"] for ann in self._coco_api.dataset["annotations"] if not ann.get("iscrowd")}
            found = [0.0 if category in present else np.nan for category in sorted(self._coco_api.getCatIds())]
            per_class = {name: np.array(found) for name in _COCO_METRICS}
        else:
            per_class = _per_class(coco_eval.eval["precision"][..., -1])
        return _finish(per_class, self._metadata, ("AP",), iou_type)


@contextmanager
def _recorded_lvis_runs() -> Iterator[list]:
    """Collects the LVISEval objects that run inside, and lets lvis 0.5.3 find the ``np.float`` that numpy 2 dropped."""
    import lvis

    runs: list = []
    original = lvis.LVISEval

    class Recorded(original):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            runs.append(self)

    lacks_float = "float" not in vars(np)
    lvis.LVISEval = Recorded
    if lacks_float:
        np.float = float
    try:
        yield runs
    finally:
        lvis.LVISEval = original
        if lacks_float and "float" in vars(np):
            del np.float


class FewShotLVISEvaluator(LVISEvaluator):
    """LVISEvaluator that adds base (frequent and common) and novel (rare) AP to LVIS' own APr, APc and APf."""

    def _eval_predictions(self, predictions):
        with _recorded_lvis_runs() as runs:
            super()._eval_predictions(predictions)
        for run in runs:
            iou_type = run.params.iou_type
            grouped = _finish(_per_class(run.eval["precision"]), self._metadata, (), iou_type)
            self._results[iou_type] = {**grouped, **self._results[iou_type]}


class FewShotVOCEvaluator(PascalVOCDetectionEvaluator):
    """PascalVOCDetectionEvaluator that adds base and novel AP, AP50 and AP75 (11-point AP for VOC 2007)."""

    def reset(self):
        self._lines: dict[int, list[str]] = defaultdict(list)

    def process(self, inputs, outputs):
        for given, output in zip(inputs, outputs, strict=True):
            found = output["instances"].to("cpu")
            rows = zip(
                found.pred_classes.tolist(), found.scores.tolist(), found.pred_boxes.tensor.tolist(), strict=True
            )
            for row, score, (x0, y0, x1, y1) in rows:
                # VOC counts pixels from 1; the loader subtracted that.
                self._lines[row].append(f"{given['image_id']} {score:.3f} {x0 + 1:.1f} {y0 + 1:.1f} {x1:.1f} {y1:.1f}")

    def evaluate(self):
        gathered = comm.gather(dict(self._lines), dst=0)
        if not comm.is_main_process():
            return None
        lines: dict[int, list[str]] = defaultdict(list)
        for part in gathered:
            for class_id, part_lines in part.items():
                lines[class_id].extend(part_lines)
        present = self._names_with_ground_truth()
        table = np.array(
            [
                self._class_aps(name, lines[row]) if name in present else [np.nan] * 10
                for row, name in enumerate(self._class_names)
            ]
        )
        per_class = {"AP": table.mean(axis=1), "AP50": table[:, 0], "AP75": table[:, 5]}
        return {"bbox": _finish(per_class, MetadataCatalog.get(self._dataset_name), ("AP", "AP50"))}

    def _names_with_ground_truth(self) -> set[str]:
        """Classes with at least one object that is not marked difficult."""
        images = Path(self._image_set_path).read_text().split()
        objects = (
            obj for image in images for obj in ElementTree.parse(self._anno_file_template.format(image)).iter("object")
        )
        return {obj.findtext("name") for obj in objects if obj.findtext("difficult", "0").strip() != "1"}

    def _class_aps(self, name: str, lines: list[str]) -> list[float]:
        """AP in percent of one class at IoU 0.50, 0.55 ... 0.95."""
        with tempfile.TemporaryDirectory(prefix="voc_eval_") as folder:
            Path(folder, f"{name}.txt").write_text("\n".join(lines))
            return [
                100 * voc_eval(
                    str(Path(folder, "{}.txt")), self._anno_file_template, self._image_set_path, name,
                    ovthresh=threshold / 100, use_07_metric=self._is_2007,
                )[2]
                for threshold in range(50, 100, 5)
            ]  # fmt: skip
