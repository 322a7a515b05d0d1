"""Average precision of all, base (b) and novel (n) classes, on top of Detectron2's evaluators.

Which class is base or novel comes from the data set's metadata (``base_classes``, ``novel_classes``), never from its
name; see class_groups.py for the means, and for the evaluator of data sets in COCO's format.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from detectron2.data import Metadata, MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.utils import comm

from . import voc_metric
from .checked import CheckedLVISEvaluator
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


class FewShotLVISEvaluator(CheckedLVISEvaluator):
    """LVISEvaluator that adds base (frequent and common) and novel (rare) AP to LVIS' own APr, APc and APf."""

    def _add_results(self, run):
        iou_type = run.params.iou_type
        grouped = _finish(per_class_metrics(run.eval["precision"]), self._metadata, (), iou_type)
        self._results[iou_type] = {**grouped, **self._results[iou_type]}


class FewShotVOCEvaluator(PascalVOCDetectionEvaluator):
    """The metric of the VOC kit (11-point AP for VOC 2007) for all, base and novel classes: AP, AP50 and AP75.

    Annotation files are read as the loaders read them.
    """

    def reset(self):
        self._found: dict[int, list[voc_metric.Detection]] = defaultdict(list)

    def process(self, inputs, outputs):
        for given, output in zip(inputs, outputs, strict=True):
            found = output["instances"].to("cpu")
            rows = zip(
                found.pred_classes.tolist(), found.scores.tolist(), found.pred_boxes.tensor.tolist(), strict=True
            )
            for row, score, (x0, y0, x1, y1) in rows:
                # VOC counts pixels from 1; the loader subtracted that. Digits are those of the kit's result files.
                box = [round(side, 1) for side in (x0 + 1, y0 + 1, x1, y1)]
                self._found[row].append((given["image_id"], round(score, 3), box))

    def evaluate(self):
        gathered = comm.gather(dict(self._found), dst=0)
        if not comm.is_main_process():
            return None
        images = voc_metric.read_images(self._anno_file_template, self._image_set_path)
        table = np.array(
            [
                voc_metric.average_precisions(
                    [line for part in gathered for line in part.get(row, ())],
                    voc_metric.of_class(images, name),
                    self._is_2007,
                )
                for row, name in enumerate(self._class_names)
            ]
        )
        per_class = {"AP": table.mean(axis=1), "AP50": table[:, 0], "AP75": table[:, 5]}
        return {"bbox": _finish(per_class, MetadataCatalog.get(self._dataset_name), ("AP", "AP50"))}
