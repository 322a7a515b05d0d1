"""IoU-based losses of box regression, for XYXY boxes of shape (N, 4) or (4,)."""

from torch import Tensor
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss


def diou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """Distance-IoU loss, Eq. (7) of https://arxiv.org/abs/1911.08287; ``reduction`` is "none", "mean" or "sum"."""
    return distance_box_iou_loss(boxes1, boxes2, reduction, eps)


def ciou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """Complete-IoU loss, Eq. (10) of https://arxiv.org/abs/1911.08287; ``reduction`` is "none", "mean" or "sum"."""
    return complete_box_iou_loss(boxes1, boxes2, reduction, eps)
