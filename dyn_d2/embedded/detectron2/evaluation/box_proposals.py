"""Recall of class-agnostic proposals, shared by the COCO and LVIS evaluators."""

from collections.abc import Callable

import torch
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from torch import Tensor

_SIDES = {
    "all": (0, 1e5),
    "small": (0, 32),
    "medium": (32, 96),
    "large": (96, 1e5),
    "96-128": (96, 128),
    "128-256": (128, 256),
    "256-512": (256, 512),
    "512-inf": (512, 1e5),
}


def greedy_overlaps(iou: Tensor) -> Tensor:
    """Best one-to-one overlaps: the pair with the highest IoU is taken, its row and column leave, and so on.

    Args:
        iou: (proposals, objects).

    Returns:
        (objects,) IoU of the matches in the order found; 0 for objects left over.
    """
    iou = iou.clone()
    found = torch.zeros(iou.shape[1])
    for step in range(min(iou.shape)):
        row, column = divmod(int(iou.argmax()), iou.shape[1])
        found[step] = iou[row, column]
        iou[row] = -1
        iou[:, column] = -1
    return found


def proposal_recall(
    predictions: list[dict],
    annotations_of: Callable[[int], list[dict]],
    thresholds: Tensor | None = None,
    area: str = "all",
    limit: int | None = None,
) -> dict:
    """Share of objects that a proposal covers, at each IoU of ``thresholds`` (default 0.5 to 0.95 in steps of 0.05).

    Args:
        predictions: {"image_id", "proposals": Instances with proposal_boxes and objectness_logits} per image.
        annotations_of: COCO-style annotations of an image id; crowds do not count.
        area: range of object sizes, by name.
        limit: keep only this many best proposals of an image.

    Returns:
        "ar" (mean of recalls), "recalls", "thresholds", "gt_overlaps" (sorted), "num_pos".
    """
    if area not in _SIDES:
        raise ValueError(f"Unknown area range {area!r}: use one of {', '.join(_SIDES)}.")
    smallest, largest = (side**2 for side in _SIDES[area])
    overlaps = [torch.zeros(0)]
    for prediction in predictions:
        proposals: Instances = prediction["proposals"]
        objects = [x for x in annotations_of(prediction["image_id"]) if not x.get("iscrowd", 0)]
        boxes = [
            BoxMode.convert(x["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
            for x in objects
            if smallest <= x["area"] <= largest
        ]
        if not boxes or len(proposals) == 0:
            continue
        best = proposals.objectness_logits.argsort(descending=True)[:limit]
        overlaps.append(greedy_overlaps(pairwise_iou(proposals.proposal_boxes[best], Boxes(boxes))))
    found = torch.cat(overlaps).sort().values
    if thresholds is None:
        thresholds = torch.arange(0.5, 0.95 + 1e-5, 0.05)
    recalls = torch.tensor([float((found >= t).sum()) for t in thresholds]) / len(found)
    return {
        "ar": recalls.mean(),
        "recalls": recalls,
        "thresholds": thresholds,
        "gt_overlaps": found,
        "num_pos": len(found),
    }
