"""The detection loss of YOLOv2 with feature re-weighting's class losses (Wang 2020, 6.2).

Letters for shapes as in predictions.py; M objects of the whole batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .boxes import pairwise_iou_cxcywh, shape_iou
from .predictions import Predictions

CLASS_LOSSES = ("softmax", "multi_binary", "single_binary")


@dataclass
class Objects:
    """The ground truth of a batch.

    Attributes:
        image: (M,) number of the image in the batch.
        slot: (M,) which slot has to find it; -1 for none, the object then counts for the class loss only.
        label: (M,) its class number in [0, N); for the single binary loss 1 or 0: of the one class or not.
        boxes: (M, 4) centre and size in cells.
    """

    image: Tensor
    slot: Tensor
    label: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.image)

    def take(self, index: Tensor) -> "Objects":
        return Objects(self.image[index], self.slot[index], self.label[index], self.boxes[index])


@dataclass(frozen=True)
class YoloLoss:
    """Losses of ``Predictions``.

    Attributes:
        class_loss: "softmax" (Eq. 6.3), "multi_binary" or "single_binary" (Table 6.5).
        object_scale: k, weight of the objectness of an anchor with an object; 1 without.
        ignore_iou: anchors whose predicted box overlaps an object by more than this are no negatives.
    """

    class_loss: str = "softmax"
    object_scale: float = 5.0
    ignore_iou: float = 0.6

    def __call__(
        self, predictions: Predictions, objects: Objects, anchors: Tensor, kept: Tensor, pull_to_prior: bool = False
    ) -> dict[str, Tensor]:
        """
        Args:
            predictions: of the batch.
            objects: its ground truth.
            anchors: (A, 2) in cells.
            kept: (B, S) bool, slots whose boxes and objectness count; see ``keep_slots``. The class loss sees all.
            pull_to_prior: let anchors without an object predict the middle of their cell and their own size, which
                steadies the first iterations.

        Returns:
            "loss_class", "loss_box" and "loss_objectness": sums, divided by the number of images.
        """
        images = len(predictions.classes)
        place = assign(objects, anchors, predictions.grid)  # M x 3: anchor, row, column
        sums = {
            "loss_class": self.of_classes(predictions.classes, objects, place),
            "loss_box": self.of_boxes(predictions.offsets, objects, place, anchors, kept, pull_to_prior),
            "loss_objectness": self.of_objectness(predictions, objects, place, anchors, kept),
        }
        return {name: value / images for name, value in sums.items()}

    def of_classes(self, logits: Tensor, objects: Objects, place: Tensor) -> Tensor:
        """Eq. 6.3, or its binary alternatives, at the anchors that own an object: one term for each (slot, anchor,
        cell)."""
        if self.class_loss == "single_binary":  # one class was shown; of objects that share an anchor it goes first
            last = last_claims(objects.image, objects.label * 0, place, order=objects.label)
        else:
            last = last_claims(objects.image, objects.slot, place)
        image, label, (anchor, row, column) = objects.image[last], objects.label[last], place[last].T
        at_objects = logits[image, :, anchor, row, column]  # M' x N
        if self.class_loss == "softmax":
            return F.cross_entropy(at_objects, label, reduction="sum")
        if self.class_loss == "single_binary":
            return F.binary_cross_entropy_with_logits(at_objects[:, 0], label.to(at_objects), reduction="sum")
        target = F.one_hot(label, logits.shape[1]).to(at_objects)
        return F.binary_cross_entropy_with_logits(at_objects, target, reduction="sum")

    @staticmethod
    def of_boxes(
        offsets: Tensor, objects: Objects, place: Tensor, anchors: Tensor, kept: Tensor, pull_to_prior: bool
    ) -> Tensor:
        """Half the squared distance of (sigmoid tx, sigmoid ty, tw, th) from their targets."""
        predicted = torch.cat([offsets[..., :2, :, :].sigmoid(), offsets[..., 2:, :, :]], dim=-3)
        own = last_claims(objects.image, objects.slot, place)
        own = own[objects.slot[own] >= 0]
        found, (anchor, row, column) = objects.take(own), place[own].T
        index = (found.image, found.slot, anchor, slice(None), row, column)
        middle = torch.stack([column, row], dim=1)
        target = torch.cat([found.boxes[:, :2] - middle, (found.boxes[:, 2:] / anchors[anchor]).log()], dim=1)
        loss = (predicted[index] - target).square().sum() / 2
        if pull_to_prior:
            prior = predicted.new_tensor([0.5, 0.5, 0.0, 0.0])[:, None, None]
            distance = (predicted - prior).square().sum(-3)
            free = kept[:, :, None, None, None].expand_as(distance).clone()
            free[found.image, found.slot, anchor, row, column] = False
            loss = loss + (distance * free).sum() / 2
        return loss

    def of_objectness(
        self, predictions: Predictions, objects: Objects, place: Tensor, anchors: Tensor, kept: Tensor
    ) -> Tensor:
        """Half the weighted squared distance of the objectness from the IoU of predicted and true box, or from 0."""
        with torch.no_grad():
            boxes = predictions.boxes(anchors)
            inside = (objects.slot >= 0).nonzero()[:, 0]
            own = last_claims(objects.image, objects.slot, place)
            own = own[objects.slot[own] >= 0]
            # IoU of every box of an object's slot with the object; the best of them decides what is no negative.
            found = objects.take(inside)
            overlaps = pairwise_iou_cxcywh(boxes[found.image, found.slot], found.boxes[:, None, None, None])
            best = boxes.new_zeros(boxes.shape[:2].numel(), overlaps[0].numel() if len(found) else 0)
            target = boxes.new_zeros(boxes.shape[:-1])
            weight = torch.ones_like(target)
            if len(found):
                slot = found.image * boxes.shape[1] + found.slot
                best.scatter_reduce_(0, slot[:, None].expand(-1, best.shape[1]), overlaps.flatten(1), "amax")
                weight[best.view_as(weight) > self.ignore_iou] = 0
                found, (anchor, row, column) = objects.take(own), place[own].T
                at = (found.image, found.slot, anchor, row, column)
                weight[at] = self.object_scale
                target[at] = pairwise_iou_cxcywh(boxes[at], found.boxes)
            weight = weight * kept[:, :, None, None, None]
        return (weight * (predictions.objectness.sigmoid() - target).square()).sum() / 2


def assign(objects: Objects, anchors: Tensor, grid: tuple[int, int]) -> Tensor:
    """(M, 3): the anchor whose shape fits each object best, and row and column of the cell that its centre is in."""
    anchor = shape_iou(objects.boxes[:, 2:], anchors.to(objects.boxes)).argmax(1)
    column = objects.boxes[:, 0].long().clamp(0, grid[1] - 1)
    row = objects.boxes[:, 1].long().clamp(0, grid[0] - 1)
    return torch.stack([anchor, row, column], dim=1)


def last_claims(image: Tensor, slot: Tensor, place: Tensor, order: Tensor | None = None) -> Tensor:
    """Indices of the objects that own their (image, slot, anchor, cell): of several at one place the last.

    Args:
        image, slot: (M,).
        place: (M, 3), of ``assign``.
        order: (M,) objects of a higher number come later; None keeps them as they are.
    """
    rank = torch.arange(len(image), device=image.device)
    if order is not None:
        rank = rank + order * len(image)
    keys = torch.cat([image[:, None], slot[:, None], place], dim=1)
    _, group = keys.unique(dim=0, return_inverse=True) if len(keys) else (None, rank)
    latest = rank.new_full((len(keys),), -1).scatter_reduce_(0, group, rank, "amax")
    return (latest[group] == rank).nonzero()[:, 0]


def keep_slots(objects: Objects, images: int, slots: int, negatives: float) -> Tensor:
    """(B, S) bool: all slots with an object, and about ``negatives`` times as many without, drawn at random.

    Args:
        negatives: a negative number keeps all. 1 in base training, 0 in fine-tuning (Wang 2020, 6.2, balances them
            without a number; these are the authors').
    """
    positive = torch.zeros(images, slots, dtype=torch.bool, device=objects.image.device)
    inside = objects.slot >= 0
    positive[objects.image[inside], objects.slot[inside]] = True
    if negatives < 0:
        return torch.ones_like(positive)
    wanted = round(negatives * max(1, int(positive.sum())))
    free = (~positive).flatten().nonzero()[:, 0]
    # Drawn on the CPU, whose generator alone is seeded by the iteration for every device alike.
    drawn = free[torch.randperm(len(free)).to(free.device)[:wanted]]
    kept = positive.flatten()
    kept[drawn] = True
    return kept.view_as(positive)
