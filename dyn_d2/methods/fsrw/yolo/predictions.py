"""What a YOLOv2-like detector predicts, and the detections in it.

Letters for shapes: B images, N classes, A anchors, a grid of H x W cells. S slots: a detector that predicts a box for
each class by itself (feature re-weighting) has S = N, plain YOLOv2 has S = 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image
from detectron2.structures import Instances

from .boxes import decode, to_corners


@dataclass
class Predictions:
    """In float32, also where the network computes with less: a box is a cell's number plus a fraction.

    Attributes:
        offsets: (B, S, A, 4, H, W), see ``decode``.
        objectness: (B, S, A, H, W) logits.
        classes: (B, N, A, H, W) logits.
    """

    offsets: Tensor
    objectness: Tensor
    classes: Tensor

    @classmethod
    def by_class(cls, outputs: Tensor, anchors: int) -> "Predictions":
        """From (B, N, A * 6, H, W): of each class and anchor four offsets, objectness, class score (Eq. 6.2)."""
        parts = outputs.float().unflatten(2, (anchors, 6))
        return cls(parts[:, :, :, :4], parts[:, :, :, 4], parts[:, :, :, 5])

    @classmethod
    def shared(cls, outputs: Tensor, classes: Tensor, anchors: int) -> "Predictions":
        """From (B, A * 5, H, W) offsets and objectness, and (B, N * A, H, W) class scores, ordered by class."""
        parts = outputs.float().unflatten(1, (1, anchors, 5))
        return cls(parts[:, :, :, :4], parts[:, :, :, 4], classes.float().unflatten(1, (-1, anchors)))

    @property
    def grid(self) -> tuple[int, int]:
        """H and W."""
        rows, columns = self.objectness.shape[-2:]
        return rows, columns

    def boxes(self, anchors: Tensor) -> Tensor:
        """(B, S, A, H, W, 4) in cells."""
        return decode(self.offsets, anchors)

    def scores(self, softmax: bool = True) -> Tensor:
        """(B, N, A, H, W): objectness times class probability, by softmax over the classes (Eq. 6.3) or sigmoid."""
        classes = self.classes.softmax(1) if softmax else self.classes.sigmoid()
        return self.objectness.sigmoid() * classes


def detect(
    predictions: Predictions,
    anchors: Tensor,
    size: tuple[int, int],
    *,
    score_thresh: float,
    nms_thresh: float,
    topk: int,
    softmax: bool = True,
) -> list[Instances]:
    """The detections in each image, after non-maximum suppression within each class.

    Args:
        predictions: of the network.
        anchors: (A, 2) in cells.
        size: height and width of the images in pixels, which the grid covers.
        score_thresh, nms_thresh, topk: as in ``fast_rcnn_inference_single_image``; topk < 0 for no limit.
        softmax: see ``Predictions.scores``.
    """
    scores = predictions.scores(softmax).flatten(2).transpose(1, 2)  # B x AHW x N
    rows, columns = predictions.grid
    cell = torch.tensor([size[1] / columns, size[0] / rows] * 2, device=scores.device)
    corners = to_corners(predictions.boxes(anchors)).flatten(2, 4) * cell  # B x S x AHW x 4
    background = scores.new_zeros(*scores.shape[:2], 1)
    return [
        fast_rcnn_inference_single_image(
            boxes.transpose(0, 1).flatten(1), torch.cat(pair, dim=1), size, score_thresh, nms_thresh, topk
        )[0]
        for boxes, *pair in zip(corners, scores, background, strict=True)
    ]
