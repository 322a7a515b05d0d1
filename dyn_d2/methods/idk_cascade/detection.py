"""IDK cascades of detectors: how good the detections of one image are. This is ours: Wang et al. 2018 have
classifiers only.

Average precision is a number of a whole test set, so that no image has "the right answer" that a threshold could keep.
Calibration counts the average precision within each image instead; results are reported as COCO's.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou

IOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())
RECALLS = np.linspace(0, 1, 101)
MOST = 100  # detections of an image that count, as in COCO's AP


def image_losses(predictions: Sequence[Instances], records: Sequence[dict[str, Any]]) -> np.ndarray:
    """(n,) one minus ``image_precision`` of each image.

    Args:
        predictions: in the frame of the whole image.
        records: data set dicts with "annotations"; crowds do not count.
    """
    return np.array([1 - image_precision(found, *_truth(r)) for found, r in zip(predictions, records, strict=True)])


def _truth(record: dict[str, Any]) -> tuple[Tensor, Tensor]:
    if "annotations" not in record:
        raise ValueError(
            f"image {record.get('image_id')} has no annotations: an IDK cascade is calibrated on labelled images."
        )
    objects = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
    return torch.tensor(boxes).reshape(-1, 4).float(), torch.tensor([a["category_id"] for a in objects]).long()


def image_precision(found: Instances, boxes: Tensor, classes: Tensor) -> float:
    """Average precision of one image in [0, 1], over IoU 0.5 to 0.95 and 101 recalls, with all detections in one
    ranking by score, whatever their class. So a wrong detection costs as much as there are right ones after it; had
    each class a ranking of its own, one of a class that is not there would spoil the image however small its score.
    An image of nothing has 1 minus the greatest score.

    Args:
        found: pred_boxes, scores, pred_classes.
        boxes: (R, 4), x0 y0 x1 y1.
        classes: (R,).
    """
    if len(classes) == 0:
        return 1.0 - float(found.scores.max()) if len(found) else 1.0
    best = found.scores.argsort(descending=True, stable=True)[:MOST]
    same = found.pred_classes[best][:, None] == classes
    overlaps = (pairwise_iou(Boxes(found.pred_boxes.tensor[best]), Boxes(boxes)) * same).numpy()
    return float(np.mean([_precision(overlaps, iou) for iou in IOUS]))


def _precision(overlaps: np.ndarray, iou: float) -> float:
    """At one IoU; ``overlaps`` (detections, best first; objects), 0 for those of another class."""
    detections, objects = overlaps.shape
    if not detections:
        return 0.0
    free, right = np.ones(objects, dtype=bool), np.zeros(detections, dtype=bool)
    for row in range(detections):
        candidates = np.where(free, overlaps[row], -1.0)
        place = int(candidates.argmax())
        if candidates[place] >= iou:
            right[row], free[place] = True, False
    hits = right.cumsum()
    precision = hits / np.arange(1, detections + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(hits / objects, RECALLS - 1e-12, side="left")
    return float(np.append(envelope, 0.0)[np.minimum(first, detections)].mean())
