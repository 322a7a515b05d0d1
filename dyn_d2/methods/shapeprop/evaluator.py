"""How well saliency and shape activation cover the objects: the best overlap of Wang 2020, 8.4.

A map becomes a mask by a threshold. Its best overlap with an object is the largest IoU that some threshold gives: the
activation M and the object's mask T are judged by max over theta of IoU(M >= theta, T), whatever the range of M's
values. Here an object's value is the best over the detections of its class whose box overlaps its box by an IoU of 0.5
or more (the rule by which regions are labelled in training); objects without such a detection count in no mean, but in
"found". Maps are resized into their box and pasted into the image, and held against the object's whole mask.

Objects are also told by their size, as COCO has it, by "s", "m" and "l" behind the name (Fig. 8.9).

A map that tells nothing, with one value everywhere, is the whole box; its overlap stands beside the others, "box_IoU".
"""

import numpy as np
import torch
from torch import Tensor

from dyn_d2.data.registered import registered_records
from dyn_d2.evaluation.class_groups import ClassGroups, group_results

from detectron2.data import MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.evaluation import DatasetEvaluator
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from detectron2.utils import comm

MAPS = {"saliency_IoU": "pred_saliency", "shape_IoU": "pred_shape"}
COLUMNS = (*MAPS, "box_IoU")
BOX_IOU = 0.5
SIZES = {"s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, np.inf)}  # pixels of an object
LEVELS = 256  # of a map's values; 0 is outside of its box
LEAST = 4  # level of a map's least value: pasted maps fade to a quarter in the corners of their box


def best_overlap(values: Tensor, mask: Tensor) -> float:
    """Largest IoU of ``values >= theta`` with a mask over theta = 1 to LEVELS - 1.

    Args:
        values: (H, W) uint8.
        mask: (H, W) bool, not empty.
    """
    levels = torch.bincount(values.flatten().long(), minlength=LEVELS)
    inside = torch.bincount(values[mask].long(), minlength=LEVELS)
    area, shared = (counts.flip(0).cumsum(0)[:-1].double() for counts in (levels, inside))
    return float((shared / (area + mask.sum() - shared)).max())


def paste_maps(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps in their boxes, each stretched over levels LEAST to LEVELS - 1: (N, H, W) uint8, 0 outside of the box.

    Args:
        maps: (N, 1, h, w), any range.
        boxes: (N, 4).
        size: H, W.
    """
    flat = maps.float().flatten(1)
    low, high = flat.min(1).values[:, None], flat.max(1).values[:, None]
    stretched = LEAST + (LEVELS - 1 - LEAST) * (flat - low) / (high - low).clamp(min=1e-8)
    unit = (stretched / (LEVELS - 1)).view(len(maps), *maps.shape[-2:])
    return paste_masks_in_image(unit, Boxes(boxes), size, threshold=-1)


class ShapeQualityEvaluator(DatasetEvaluator):
    """Mean best overlap of "pred_saliency" and "pred_shape" of the detections, over the objects of each class and then
    over the classes, in percent: "saliency_IoU" and "shape_IoU", beside "box_IoU" of the whole box, and "found", the
    share of objects that were found."""

    def __init__(self, dataset_name: str, groups: ClassGroups) -> None:
        """
        Args:
            dataset_name: its records have masks.
            groups: of classes, see class_groups.py.
        """
        self._metadata, self._groups = MetadataCatalog.get(dataset_name), groups
        self._records = {record["image_id"]: record for record in registered_records(dataset_name)}
        self.reset()

    def reset(self) -> None:
        # Of each object: class, pixels, and the best overlap of each map; None for an object that was not found.
        self._objects: list[tuple[int, int, list[float] | None]] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for given, output in zip(inputs, outputs, strict=True):
            found = output["instances"].to("cpu")
            missing = [name for name in MAPS.values() if not found.has(name)]
            if missing:
                raise ValueError(
                    f"the detections have no {' and '.join(missing)}: set MODEL.SHAPE_PROP.OUTPUT_MAPS to False for a "
                    "model without ShapeProp."
                )
            self._objects += self._judge(self._records[given["image_id"]], found)

    def _judge(self, record: dict, found) -> list[tuple[int, int, list[float] | None]]:
        size = found.image_size
        annotations = [a for a in record["annotations"] if not a.get("iscrowd", 0) and a.get("segmentation")]
        if not annotations:
            return []
        moved = [{**a, "bbox_mode": BoxMode.XYXY_ABS, "bbox": _corners(a)} for a in annotations]
        truth = utils.annotations_to_instances(moved, size, mask_format="bitmask")
        fits = pairwise_iou(truth.gt_boxes, found.pred_boxes) >= BOX_IOU
        fits &= truth.gt_classes[:, None] == found.pred_classes
        judged = []
        for label, mask, of_object in zip(truth.gt_classes.tolist(), truth.gt_masks.tensor, fits, strict=True):
            rows = of_object.nonzero()[:, 0]
            if not mask.any():
                continue
            best = None
            if len(rows):
                maps = [found.get(name)[rows] for name in MAPS.values()]
                maps.append(torch.zeros_like(maps[0]))
                pasted = (paste_maps(values, found.pred_boxes.tensor[rows], size) for values in maps)
                best = [max(best_overlap(values, mask) for values in maps) for maps in pasted]
            judged.append((label, int(mask.sum()), best))
        return judged

    def evaluate(self) -> dict[str, dict[str, float]]:
        """{"shape": ...} on the main process, {} on the others."""
        gathered = comm.gather(self._objects, dst=0)
        if not comm.is_main_process():
            return {}
        by_class: list[list[tuple[int, list[float] | None]]] = [[] for _ in self._metadata.thing_classes]
        for part in gathered:
            for label, size, best in part:
                by_class[label].append((size, best))
        found = [[(size, best) for size, best in objects if best] for objects in by_class]
        share = [100 * len(f) / len(o) if o else np.nan for f, o in zip(found, by_class, strict=True)]
        per_class = {"found": np.array(share)}
        for row, name in enumerate(COLUMNS):
            per_class[name] = np.array([_mean([best[row] for _, best in objects]) for objects in found])
            for letter, (least, most) in SIZES.items():
                chosen = [[best[row] for size, best in objects if least <= size < most] for objects in found]
                per_class[name + letter] = np.array([_mean(values) for values in chosen])
        return {"shape": group_results(per_class, self._metadata, self._groups, COLUMNS, "shape")}


def _mean(values: list[float]) -> float:
    return 100 * float(np.mean(values)) if values else float("nan")


def _corners(annotation: dict) -> list[float]:
    return BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
