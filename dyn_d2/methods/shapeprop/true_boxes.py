"""How good masks are where boxes and classes are given: what a detector finds or misses does not count.

Each object of a data set gets a mask from the model in its true box. An object's value is the IoU with its true mask;
"share" is the share of objects above an IoU of 0.50, 0.55, ..., 0.95, averaged over these (what AP is without scores),
"share50" and "share75" at one of them, "IoU" the mean.
"""

from typing import Any

import numpy as np
from torch import nn

from dyn_d2.data.registered import registered_records
from dyn_d2.evaluation.class_groups import ClassGroups, group_results
from dyn_d2.utils.errors import UserError

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm

from .annotator import MaskHeads, MaskModel, masks_of

THRESHOLDS = np.arange(0.5, 0.96, 0.05)


def shares(overlaps: np.ndarray) -> dict[str, float]:
    """The metrics of (N,) IoUs, in percent; NaN where there is none."""
    if not len(overlaps):
        return dict.fromkeys(("share", "share50", "share75", "IoU"), float("nan"))
    above = [100 * float((overlaps >= threshold - 1e-9).mean()) for threshold in THRESHOLDS]
    return {
        "share": float(np.mean(above)),
        "share50": above[0],
        "share75": above[5],
        "IoU": 100 * float(overlaps.mean()),
    }


class TrueBoxEvaluator(DatasetEvaluator):
    """Asks the model itself for the masks of the images that it has seen; gives {"true_boxes": ...}."""

    def __init__(self, cfg: CfgNode, model: nn.Module, dataset_name: str, groups: ClassGroups) -> None:
        """
        Args:
            model: a detector with masks; where it is none, ``evaluate`` says so.
            groups: of classes, see class_groups.py.
        """
        self._model: Any = model
        self._mapper, self._groups = DatasetMapper(cfg, is_train=False), groups
        self._metadata = MetadataCatalog.get(dataset_name)
        self._records = {record["image_id"]: record for record in registered_records(dataset_name)}
        self.reset()

    def reset(self) -> None:
        self._seen: list[Any] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        self._seen += [given["image_id"] for given in inputs]

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Metrics on the main process, {} on the others.

        Raises:
            UserError: the model cannot predict masks of given boxes.
        """
        if not isinstance(self._model, MaskModel) or not isinstance(self._model.roi_heads, MaskHeads):
            raise UserError(
                "TEST.MASKS_IN_TRUE_BOXES: this model cannot predict masks of given boxes: set it to False."
            )
        training, _ = self._model.training, self._model.eval()
        try:
            own = [pair for image in self._seen for pair in self._overlaps(self._records[image])]
        finally:
            self._model.train(training)
        gathered = comm.gather(own, dst=0)
        if not comm.is_main_process():
            return {}
        by_class: list[list[float]] = [[] for _ in self._metadata.thing_classes]
        for label, overlap in (pair for part in gathered for pair in part):
            by_class[label].append(overlap)
        found = [shares(np.array(values)) for values in by_class]
        per_class = {name: np.array([metrics[name] for metrics in found]) for name in found[0]}
        return {"true_boxes": group_results(per_class, self._metadata, self._groups, ("share",), "true boxes")}

    def _overlaps(self, record: dict) -> list[tuple[int, float]]:
        """(class, IoU) of each object of an image that has a mask."""
        objects = [a for a in record.get("annotations", ()) if not a.get("iscrowd", 0) and a.get("segmentation")]
        if not objects:
            return []
        size = record["height"], record["width"]
        masks = {id(a): mask for a, mask in masks_of(self._mapper, self._model, {**record, "annotations": objects})}
        found = []
        for annotation in objects:
            corners = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
            moved = {**annotation, "bbox": corners, "bbox_mode": BoxMode.XYXY_ABS}
            truth = utils.annotations_to_instances([moved], size, mask_format="bitmask").gt_masks.tensor[0].numpy()
            mask = masks.get(id(annotation), np.zeros(size, bool))
            shared, union = (mask & truth).sum(), (mask | truth).sum()
            if truth.any():
                found.append((annotation["category_id"], float(shared / union)))
        return found
