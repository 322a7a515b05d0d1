"""Non-maximum suppression of axis-aligned boxes."""

from torch import Tensor
from torchvision.ops import batched_nms as _batched_nms
from torchvision.ops import nms as nms


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """NMS within each group of ``idxs``.

    Args:
        boxes: (N, 4) XYXY. Taken as float32, because groups may be told apart by offsets that half cannot hold.
        scores, idxs: (N,); idxs are classes or feature levels.

    Returns:
        int64 indices of the kept boxes in descending order of score.
    """
    if boxes.shape[-1] != 4:
        raise ValueError(f"batched_nms takes (N, 4) boxes, got {tuple(boxes.shape)}.")
    return _batched_nms(boxes.float(), scores, idxs, iou_threshold)
