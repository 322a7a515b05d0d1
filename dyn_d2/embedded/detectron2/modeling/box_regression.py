"""How boxes are turned into regression targets and back, and the regression loss of dense predictors."""

import math
from collections.abc import Sequence
from types import EllipsisType

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from detectron2.layers import cat
from detectron2.left_out import refusal_of
from detectron2.structures import Boxes

__getattr__ = refusal_of(__name__)

# Growth by more than from a 16-pixel anchor to a 1000-pixel image is taken for an error.
_DEFAULT_SCALE_CLAMP = math.log(1000.0 / 16)


class Box2BoxTransform:
    """The R-CNN parametrisation: a box is moved by (dx, dy) times its size and scaled by exp(dw), exp(dh)."""

    def __init__(self, weights: tuple[float, float, float, float], scale_clamp: float = _DEFAULT_SCALE_CLAMP) -> None:
        """
        Args:
            weights: factors of (dx, dy, dw, dh) in the deltas; they balance the parts of the loss.
            scale_clamp: largest dw and dh (in log scale) when deltas are applied.
        """
        self.weights = tuple(weights)
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """The deltas (N, 4) that turn the boxes ``src_boxes`` (N, 4) into ``target_boxes`` (N, 4), both XYXY.

        Raises:
            ValueError: a source box has no width.
        """
        src_size, target_size = src_boxes[:, 2:] - src_boxes[:, :2], target_boxes[:, 2:] - target_boxes[:, :2]
        if not bool((src_size[:, 0] > 0).all()):
            raise ValueError("box deltas need source boxes of positive width; check for empty or NaN proposals")
        moved = target_boxes[:, :2] + 0.5 * target_size - (src_boxes[:, :2] + 0.5 * src_size)
        parts = torch.cat([moved / src_size, (target_size / src_size).log()], dim=1).unbind(dim=1)
        return torch.stack([part * weight for part, weight in zip(parts, self.weights, strict=True)], dim=1)

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Apply k deltas to each box.

        Args:
            deltas: (N, k * 4); k > 1 for class-specific regression. Half precision is widened to float32.
            boxes: (N, 4) in XYXY.

        Returns:
            (N, k * 4) boxes in XYXY.
        """
        deltas = deltas.float()
        boxes = boxes.to(deltas.dtype)[:, None]
        size = boxes[..., 2:] - boxes[..., :2]
        centre = boxes[..., :2] + 0.5 * size
        dx, dy, dw, dh = (
            part / weight for part, weight in zip(deltas.unflatten(1, (-1, 4)).unbind(dim=2), self.weights, strict=True)
        )
        centre = torch.stack([dx, dy], dim=2) * size + centre
        half = 0.5 * (torch.stack([dw, dh], dim=2).clamp(max=self.scale_clamp).exp() * size)
        return torch.cat([centre - half, centre + half], dim=2).view(deltas.shape)


_IOU_LOSSES = {"giou": generalized_box_iou_loss, "diou": distance_box_iou_loss, "ciou": complete_box_iou_loss}


def _dense_box_regression_loss(
    anchors: Sequence[Boxes | Tensor],
    box2box_transform: Box2BoxTransform,
    pred_anchor_deltas: Sequence[Tensor],
    gt_boxes: Sequence[Tensor],
    fg_mask: Tensor | EllipsisType,
    box_reg_loss_type: str = "smooth_l1",
    smooth_l1_beta: float = 0.0,
) -> Tensor:
    """Sum of the regression loss over the foreground of all images and feature maps.

    Args:
        anchors: boxes of each feature map, (Ri, 4).
        box2box_transform: how deltas and boxes belong together.
        pred_anchor_deltas: predictions of each feature map, (N, Ri, 4).
        gt_boxes: target of every anchor for each of N images, (R, 4), R = sum of Ri.
        fg_mask: (N, R) bool, which anchors count; ``...`` for all.
        box_reg_loss_type: "smooth_l1", "giou", "diou" or "ciou".
        smooth_l1_beta: where smooth L1 turns from quadratic to linear; 0 is plain L1.

    Raises:
        ValueError: the type of loss is unknown.
    """
    if box_reg_loss_type != "smooth_l1" and box_reg_loss_type not in _IOU_LOSSES:
        raise ValueError(f"box regression loss {box_reg_loss_type!r} is unknown: use smooth_l1, giou, diou or ciou")
    index = fg_mask if fg_mask is ... else fg_mask.nonzero(as_tuple=True)
    all_anchors = cat([a.tensor if isinstance(a, Boxes) else a for a in anchors])
    source = all_anchors.expand(len(gt_boxes), -1, -1)[index].reshape(-1, 4)
    target = torch.stack(list(gt_boxes))[index].reshape(-1, 4)
    deltas = cat(list(pred_anchor_deltas), dim=1)[index].reshape(-1, 4)
    if box_reg_loss_type == "smooth_l1":
        wanted = box2box_transform.get_deltas(source, target)
        return F.smooth_l1_loss(deltas, wanted, reduction="sum", beta=smooth_l1_beta)
    predicted = box2box_transform.apply_deltas(deltas, source)
    return _IOU_LOSSES[box_reg_loss_type](predicted, target, reduction="sum")
