"""From scored boxes to proposals, and ground truth as additional proposals."""

import math

import torch
from torch import Tensor

from detectron2.layers import batched_nms, cat
from detectron2.structures import Boxes, Instances

# The logit of a ground-truth box: an objectness of (nearly) 1.
_GT_LOGIT = math.log((1.0 - 1e-10) / (1 - (1.0 - 1e-10)))


def _best_of_level(boxes: Tensor, scores: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """The ``topk`` boxes (N, R, 4) of the highest scores (N, R), sorted; all, as they are, if there are no more."""
    if scores.shape[1] <= topk:
        return boxes, scores
    scores, index = scores.topk(topk, dim=1)
    return boxes.gather(1, index[..., None].expand(-1, -1, 4)), scores


def find_top_rpn_proposals(
    proposals: list[Tensor],
    pred_objectness_logits: list[Tensor],
    image_sizes: list[tuple[int, int]],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> list[Instances]:
    """Choose the best proposals of each image: top k of each level, clipping, NMS within each level, top k of all.

    Args:
        proposals: boxes of each level, (N, Ri, 4) in XYXY pixels of the network's input.
        pred_objectness_logits: their scores, (N, Ri).
        image_sizes: (height, width) of each of the N images.
        nms_thresh: IoU above which the lower score of two boxes of one level is dropped.
        pre_nms_topk: boxes that each level may bring.
        post_nms_topk: boxes that each image may keep.
        min_box_size: boxes not wider and higher than this are dropped.
        training: boxes or scores that are not finite raise an error in training, and are dropped otherwise.

    Returns:
        for each image ``proposal_boxes`` and ``objectness_logits``, highest score first.

    Raises:
        FloatingPointError: see ``training``.
    """
    best = [
        _best_of_level(level_boxes, level_scores, pre_nms_topk)
        for level_boxes, level_scores in zip(proposals, pred_objectness_logits, strict=True)
    ]
    levels = torch.cat([scores.new_full(scores.shape[1:], i, dtype=torch.int64) for i, (_, scores) in enumerate(best)])
    boxes, scores = cat([b for b, _ in best], dim=1), cat([s for _, s in best], dim=1)

    # All images are checked at once: on a GPU each look at a value waits for the device.
    finite = boxes.isfinite().all(dim=2) & scores.isfinite()
    limits = torch.tensor([[w, h, w, h] for h, w in image_sizes], dtype=boxes.dtype).to(boxes.device, non_blocking=True)
    boxes = torch.minimum(boxes.clamp(min=0), limits[:, None])
    valid = finite & (boxes[..., 2:] - boxes[..., :2] > min_box_size).all(dim=2)
    all_finite, all_valid = torch.stack([finite.all(), valid.all()]).tolist()
    if training and not all_finite:
        raise FloatingPointError(
            "RPN predicted boxes or scores that are infinite or NaN: the training has diverged "
            "(lower SOLVER.BASE_LR, lengthen the warm-up or clip gradients)"
        )

    results = []
    for image_boxes, image_scores, ok, image_size in zip(boxes, scores, valid, image_sizes, strict=True):
        image_levels = levels
        if not all_valid:
            image_boxes, image_scores, image_levels = image_boxes[ok], image_scores[ok], levels[ok]
        keep = batched_nms(image_boxes, image_scores, image_levels, nms_thresh)[:post_nms_topk]
        results.append(
            Instances(image_size, proposal_boxes=Boxes(image_boxes[keep]), objectness_logits=image_scores[keep])
        )
    return results


def add_ground_truth_to_proposals(gt: list[Instances] | list[Boxes], proposals: list[Instances]) -> list[Instances]:
    """Append the ground-truth boxes of each image to its proposals, so that there are good ones from the first step on.

    Args:
        gt: for each image the ground truth, with ``gt_boxes``, or its boxes alone.
        proposals: for each image ``proposal_boxes`` and ``objectness_logits``.

    Raises:
        ValueError: the lists differ in length.
    """
    if len(proposals) != len(gt):
        raise ValueError(f"proposals of {len(proposals)} images cannot be joined with ground truth of {len(gt)} images")
    return [add_ground_truth_to_proposals_single_image(g, p) for g, p in zip(gt, proposals, strict=True)]


def add_ground_truth_to_proposals_single_image(gt: Instances | Boxes, proposals: Instances) -> Instances:
    """:func:`add_ground_truth_to_proposals` for one image.

    Raises:
        ValueError: the proposals have a field that the ground truth lacks.
    """
    fields = {"gt_boxes": gt} if isinstance(gt, Boxes) else dict(gt.get_fields())
    logits = proposals.objectness_logits
    fields["proposal_boxes"] = fields["gt_boxes"]
    fields["objectness_logits"] = torch.full((len(fields["gt_boxes"]),), _GT_LOGIT, device=logits.device)
    missing = sorted(set(proposals.get_fields()) - set(fields))
    if missing:
        raise ValueError(f"ground truth cannot be appended to proposals: it lacks their fields {missing}")
    # Fields that only the ground truth has would have no values for the proposals.
    return Instances.cat([proposals, Instances(proposals.image_size, **{k: fields[k] for k in proposals.get_fields()})])
