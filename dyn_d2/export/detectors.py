"""Detectors of fixed shapes: a graph cannot have as many boxes as an image happens to show.

Each choice (best anchors, non-maximum suppression, detections) keeps a fixed number of rows; those that stand for
nothing have the score minus infinity until the end, where their score is 0 and their class -1. What comes out for the
others is what the model itself finds: it takes all regions above its score threshold into its last suppression, the
graph the best ``CANDIDATES`` of them.

Shape shorthand: R rows, K classes, M x M pixels of a mask. Boxes are (x0, y0, x1, y1) in pixels of the input.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from detectron2.modeling import GeneralizedRCNN, RetinaNet, StandardROIHeads
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from detectron2.structures import Boxes, Instances

CANDIDATES = 1000
NOTHING = float("-inf")
Size = tuple[int, int]  # height and width; symbols, perhaps


def best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` best of (R,) scores and which these are; R and more stand for the nothing that fills up."""
    return torch.cat([scores, scores.new_full((count,), NOTHING)]).topk(count)


def rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows of ``values`` (R, ...) by what ``best`` gave: zeros for nothing."""
    return torch.cat([values, values.new_zeros(len(index), *values.shape[1:])])[index]


def clipped(boxes: Tensor, size: Size) -> Tensor:
    """(R, 4) boxes within the image."""
    height, width = size
    x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)


def survivors(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression within each group: the scores (R,), that of what is suppressed minus infinity."""
    apart = groups.to(boxes.dtype) * (boxes.max() - boxes.min() + 1)  # boxes of different groups do not meet
    kept = nms(boxes + apart[:, None], scores, threshold)
    stays = torch.zeros_like(scores).index_fill(0, kept, 1.0)
    return torch.where(stays > 0, scores, NOTHING)


def anchors_of(generator: Any, maps: list[Tensor]) -> list[Tensor]:
    """Anchors (R, 4) of each feature map, as Detectron2's DefaultAnchorGenerator orders them."""
    found = []
    for feature, stride, cell in zip(maps, generator.strides, generator.cell_anchors, strict=True):
        height, width = feature.shape[-2:]
        y, x = ((torch.arange(n, dtype=torch.float32) + generator.offset) * stride for n in (height, width))
        y, x = y[:, None].expand(height, width).reshape(-1), x[None].expand(height, width).reshape(-1)
        found.append((torch.stack([x, y, x, y], 1)[:, None] + cell[None]).reshape(-1, 4))
    return found


def by_position(maps: list[Tensor], length: int) -> list[Tensor]:
    """Predictions (1, A * length, H, W) as (H * W * A, length), the order of the anchors."""
    return [x[0].permute(1, 2, 0).reshape(-1, length) for x in maps]


def pooled(pooler: ROIPooler, maps: list[Tensor], boxes: Tensor) -> Tensor:
    """What a pooler crops for boxes (R, 4) of one image. Each map of a pyramid pools all of them, those of other maps
    as empty boxes."""
    boxes_of_image = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], 1)
    if len(maps) == 1:
        return pooler.level_poolers[0](maps[0], boxes_of_image)
    levels = assign_boxes_to_levels(
        [Boxes(boxes)], pooler.min_level, pooler.max_level, pooler.canonical_box_size, pooler.canonical_level
    )
    parts = []
    for number, (crop, feature) in enumerate(zip(pooler.level_poolers, maps, strict=True)):
        mine = levels == number
        part = crop(feature, torch.where(mine[:, None], boxes_of_image, 0.0))
        parts.append(torch.where(mine[:, None, None, None], part, 0.0))
    return torch.stack(parts).sum(0)


def finished(boxes: Tensor, scores: Tensor, classes: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The ``count`` best detections: boxes (count, 4), scores and classes (count,), and which of them there are."""
    visible = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    scores, index = best(torch.where(visible, scores, NOTHING), count)
    there = scores > NOTHING
    return rows(boxes, index), torch.where(there, scores, 0.0), torch.where(there, rows(classes, index), -1), there


def with_proposals(model: nn.Module, count: int) -> nn.Module:
    """What a ``RCNNForm`` of ``count`` proposals has to agree with: ``model`` whose region proposal network hands on so
    many; ``model`` itself where ``count`` is 0 or it has no such network."""
    if not count or not isinstance(model, GeneralizedRCNN):
        return model
    other: Any = copy.deepcopy(model)
    other.proposal_generator.post_nms_topk = other.proposal_generator.post_nms_topk | {False: count}
    return other


class RCNNForm(nn.Module):
    """Faster R-CNN, with masks where it has them, as far as its parts are Detectron2's or made like them."""

    rpn: Any
    heads: Any

    def __init__(self, model: GeneralizedRCNN, proposals: int = 0) -> None:
        """
        Args:
            proposals: how many the region proposal network hands on; 0 for as many as in evaluation.

        Raises:
            ValueError: a part works in another way.
        """
        super().__init__()
        problem = _unknown_part(model)
        if problem:
            raise ValueError(problem)
        self.rpn, self.heads = model.proposal_generator, model.roi_heads
        self.proposals: int = proposals or self.rpn.post_nms_topk[False]
        predictor = self.heads.box_predictor
        self.limits = predictor.test_score_thresh, predictor.test_nms_thresh, predictor.test_topk_per_image
        self.outputs = ("boxes", "scores", "classes", *(("masks",) if self.heads.mask_on else ()))

    def forward(self, features: dict[str, Tensor], size: Size) -> tuple[Tensor, ...]:
        """boxes (R, 4), scores (R,), classes int64 (R,) and, with a mask head, masks (R, M, M): the probability of
        each place inside of the box."""
        boxes, there = self.propose(features, size)
        boxes, scores, classes, there = self.classify(features, boxes, there, size)
        if not self.heads.mask_on:
            return boxes, scores, classes
        maps = [features[name] for name in self.heads.mask_in_features]
        logits = self.heads.mask_head.layers(pooled(self.heads.mask_pooler, maps, boxes))
        index = torch.where(there, classes, 0) if logits.shape[1] > 1 else torch.zeros_like(classes)
        masks = logits.gather(1, index[:, None, None, None].expand(-1, 1, *logits.shape[2:]))[:, 0].sigmoid()
        return boxes, scores, classes, masks

    def propose(self, features: dict[str, Tensor], size: Size) -> tuple[Tensor, Tensor]:
        """(R, 4) proposals, and bool (R,): which of them there are."""
        rpn = self.rpn
        maps = [features[name] for name in rpn.in_features]
        logits, deltas = rpn.rpn_head(maps)
        found = []
        levels = zip(
            anchors_of(rpn.anchor_generator, maps), by_position(logits, 1), by_position(deltas, 4), strict=True
        )
        for anchors, scores, moves in levels:
            values, index = best(scores[:, 0], rpn.pre_nms_topk[False])
            found.append((rpn.box2box_transform.apply_deltas(rows(moves, index), rows(anchors, index)), values))
        level = torch.cat([torch.full_like(values, float(i)) for i, (_, values) in enumerate(found)])
        boxes, values = torch.cat([x for x, _ in found]), torch.cat([x for _, x in found])
        usable = boxes.isfinite().all(1) & values.isfinite()
        boxes = clipped(torch.where(usable[:, None], boxes, 0.0), size)
        usable = usable & ((boxes[:, 2:] - boxes[:, :2]) > rpn.min_box_size).all(1)
        kept = survivors(boxes, torch.where(usable, values, NOTHING), level, rpn.nms_thresh)
        values, index = best(torch.where(usable, kept, NOTHING), self.proposals)
        return rows(boxes, index), values > NOTHING

    def classify(
        self, features: dict[str, Tensor], boxes: Tensor, there: Tensor, size: Size
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As ``finished`` gives them, of proposals (R, 4) that are ``there``."""
        heads, (least, overlap, count) = self.heads, self.limits
        maps = [features[name] for name in heads.box_in_features]
        predictions = heads.box_predictor(heads.box_head(pooled(heads.box_pooler, maps, boxes)))
        regions = Instances(size, proposal_boxes=Boxes(boxes))
        (moved,), (probabilities,) = (
            predict(predictions, [regions])
            for predict in (heads.box_predictor.predict_boxes, heads.box_predictor.predict_probs)
        )
        usable = there & moved.isfinite().all(1) & probabilities.isfinite().all(1)
        scores = probabilities[:, :-1]
        kinds = scores.shape[1]
        scores = torch.where(usable[:, None] & (scores > least), scores, NOTHING).reshape(-1)
        values, index = best(scores, CANDIDATES)
        classes = index % kinds
        moved = moved.reshape(len(boxes), -1, 4)
        flat = moved if moved.shape[1] == kinds else moved.expand(-1, kinds, 4)
        chosen = clipped(rows(torch.nan_to_num(flat.reshape(-1, 4)), index), size)
        return finished(chosen, survivors(chosen, values, classes, overlap), classes, count)


class RetinaNetForm(nn.Module):
    """RetinaNet, whose best candidates of each feature map go into one suppression, as in Detectron2."""

    outputs = ("boxes", "scores", "classes")

    def __init__(self, model: RetinaNet) -> None:
        """
        Raises:
            ValueError: the model finds its detections in another way.
        """
        super().__init__()
        if type(model).forward_inference is not RetinaNet.forward_inference:
            raise ValueError(f"{type(model).__name__} finds its detections in a way of its own, which has no graph.")
        self.model: list[Any] = [model]  # in a list: it is a submodule of the form already

    def forward(self, features: dict[str, Tensor], size: Size) -> tuple[Tensor, ...]:
        """boxes (R, 4), scores (R,) and classes int64 (R,)."""
        (model,) = self.model
        maps = [features[name] for name in model.head_in_features]
        logits, deltas = model.head(maps)
        kinds = model.num_classes
        found = []
        levels = zip(
            anchors_of(model.anchor_generator, maps), by_position(logits, kinds), by_position(deltas, 4), strict=True
        )
        for anchors, scores, moves in levels:
            scores = scores.sigmoid().reshape(-1)
            scores = torch.where(scores > model.test_score_thresh, scores, NOTHING)
            values, index = best(scores, model.test_topk_candidates)
            place = index // kinds
            boxes = model.box2box_transform.apply_deltas(rows(moves, place), rows(anchors, place))
            found.append((boxes, values, index % kinds))
        boxes, values, classes = (torch.cat(parts) for parts in zip(*found, strict=True))
        kept = survivors(boxes, values, classes, model.test_nms_thresh)
        values, index = best(kept, model.max_detections_per_image)
        return finished(clipped(rows(boxes, index), size), values, rows(classes, index), len(index))[:3]


def _unknown_part(model: GeneralizedRCNN) -> str | None:
    """Which part of the detector works in a way that ``RCNNForm`` does not know."""
    heads, rpn = model.roi_heads, model.proposal_generator
    if not isinstance(rpn, RPN):
        return f"the proposal generator {type(rpn).__name__} has no form as a graph: RPN has one."
    if not isinstance(heads, StandardROIHeads):
        return f"the ROI heads {type(heads).__name__} have no form as a graph: StandardROIHeads and DynROIHeads have."
    same: list[tuple[nn.Module, type, str]] = [(heads, StandardROIHeads, name) for name in ("forward", "_forward_box")]
    same.append((heads.box_predictor, FastRCNNOutputLayers, "inference"))
    if heads.mask_on:
        same += [(heads, StandardROIHeads, "_forward_mask")]
        if not isinstance(heads.mask_head, BaseMaskRCNNHead) or heads.mask_pooler is None:
            return f"the mask head {type(heads.mask_head).__name__} has no form as a graph."
    for part, plain, name in same:
        if getattr(type(part), name, None) is not getattr(plain, name):
            return f"{type(part).__name__} finds its detections in a way of its own ({name}), which has no graph."
    return None
