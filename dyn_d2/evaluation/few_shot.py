"""Average precision of all, base (b) and novel (n) classes, on top of Detectron2's evaluators.

Which class is base or novel comes from the data set's metadata (``base_classes``, ``novel_classes``), never from its
name; see class_groups.py for the means, and for the evaluator of data sets in COCO's format.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dyn_d2.utils.atomic import atomic_write

from detectron2.data import Metadata, MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.utils import comm

from . import voc_metric
from .checked import CheckedLVISEvaluator
from .class_groups import group_results, per_class_metrics
from .class_order import in_class_order

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


class FewShotLVISEvaluator(CheckedLVISEvaluator):
    """LVISEvaluator that adds base (frequent and common) and novel (rare) AP to LVIS' own APr, APc and APf."""

    def _add_results(self, run):
        iou_type = run.params.iou_type
        in_class_order(run, self._metadata)
        grouped = _finish(per_class_metrics(run.eval["precision"]), self._metadata, (), iou_type)
        self._results[iou_type] = {**grouped, **self._results[iou_type]}


class FewShotVOCEvaluator(PascalVOCDetectionEvaluator):
    """The metric of the VOC kit (11-point AP for VOC 2007) for all, base and novel classes: AP, AP50 and AP75.

    Annotation files are read as the loaders read them. Detections are written as the kit wants them, a file a class:
    lines of image, score with six decimals, xmin, ymin, xmax, ymax. What is scored is what is written.
    """

    def __init__(self, dataset_name: str, output_dir: str | Path | None = None) -> None:
        """
        Args:
            output_dir: where the detections are written; None: nowhere.
        """
        super().__init__(dataset_name)
        self._folder = Path(output_dir) / "voc_detections" if output_dir else None

    def reset(self):
        self._found: dict[int, list[voc_metric.Detection]] = defaultdict(list)

    def process(self, inputs, outputs):
        for given, output in zip(inputs, outputs, strict=True):
            found = output["instances"].to("cpu")
            rows = zip(
                found.pred_classes.tolist(), found.scores.tolist(), found.pred_boxes.tensor.tolist(), strict=True
            )
            for row, score, (x0, y0, x1, y1) in rows:
                # VOC counts pixels from 1; the loader subtracted that. With fewer digits of scores, detections would
                # tie, whose order is none of the detector.
                box = [round(side, 1) for side in (x0 + 1, y0 + 1, x1, y1)]
                self._found[row].append((given["image_id"], round(score, 6), box))

    def evaluate(self):
        gathered = comm.gather(dict(self._found), dst=0)
        if not comm.is_main_process():
            return None
        images = voc_metric.read_images(self._anno_file_template, self._image_set_path)
        rows = []
        for row, name in enumerate(self._class_names):
            found = [line for part in gathered for line in part.get(row, ())]
            self._write(name, found)
            rows.append(voc_metric.average_precisions(found, voc_metric.of_class(images, name), self._is_2007))
        table = np.array(rows)
        per_class = {"AP": table.mean(axis=1), "AP50": table[:, 0], "AP75": table[:, 5]}
        return {"bbox": _finish(per_class, MetadataCatalog.get(self._dataset_name), ("AP", "AP50"))}

    def _write(self, name: str, found: Sequence[voc_metric.Detection]) -> None:
        if self._folder is None:
            return
        split = MetadataCatalog.get(self._dataset_name).split
        with atomic_write(self._folder / f"comp4_det_{split}_{name}.txt") as file:
            for image, score, box in found:
                file.write(f"{image} {score:.6f} {' '.join(f'{side:.1f}' for side in box)}\n")
