"""Average precision of all, base (b) and novel (n) classes, on top of Detectron2's evaluators.

Which class is base or novel comes from the data set's metadata (``base_classes``, ``novel_classes``), never from its
name; see class_groups.py for the means, and for the evaluator of data sets in COCO's format.
"""

import logging
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from detectron2.data import Metadata, MetadataCatalog
from detectron2.evaluation import LVISEvaluator, PascalVOCDetectionEvaluator
from detectron2.evaluation.pascal_voc_evaluation import voc_eval
from detectron2.utils import comm

from .class_groups import group_results, per_class_metrics

logger = logging.getLogger(__name__)


def few_shot_groups(metadata: Metadata) -> dict[str, Sequence[str]]:
    """Base and novel classes as groups (see class_groups.py); {} for a data set without."""
    base, novel = metadata.get("base_classes", ()), metadata.get("novel_classes", ())
    if novel and not set(novel) & set(metadata.thing_classes):
        logger.info("novel classes: not predicted (this evaluation covers base classes only)")
    return {"b{}": base, "n{}": novel} if base or novel else {}


def _finish(
    per_class: Mapping[str, np.ndarray], metadata: Metadata, shown: Sequence[str], task: str = "bbox"
) -> dict[str, float]:
    return group_results(per_class, metadata, few_shot_groups(metadata), shown, task)


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
            grouped = _finish(per_class_metrics(run.eval["precision"]), self._metadata, (), iou_type)
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
