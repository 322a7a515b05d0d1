"""The region proposal network: choice of proposals, labels, losses."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import nms

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead, build_proposal_generator
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals, find_top_rpn_proposals
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import EventStorage

SIZES = [(64, 96), (60, 80)]


def random_boxes(n: int) -> torch.Tensor:
    corner = torch.rand(n, 2) * 60 - 10
    return torch.cat([corner, corner + torch.rand(n, 2) * 40], dim=1)


def build_rpn(**keys) -> RPN:
    cfg = get_cfg()
    cfg.MODEL.RPN.IN_FEATURES = ["p3", "p4"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32]]
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 32
    for key, value in keys.items():
        cfg.MODEL.RPN[key] = value
    return build_proposal_generator(cfg, {f"p{i}": ShapeSpec(channels=8, stride=2**i) for i in (3, 4)})


def inputs():
    features = {f"p{i}": torch.randn(2, 8, 64 // 2**i, 96 // 2**i, requires_grad=True) for i in (3, 4)}
    return ImageList(torch.zeros(2, 3, 64, 96), SIZES), features


def ground_truth(*counts: int) -> list[Instances]:
    found = []
    for size, count in zip(SIZES, counts, strict=True):
        corner = torch.rand(count, 2) * 30
        boxes = torch.cat([corner, corner + 10 + torch.rand(count, 2) * 20], dim=1)
        found.append(Instances(size, gt_boxes=Boxes(boxes), gt_classes=torch.zeros(count, dtype=torch.int64)))
    return found


def propose_by_hand(boxes, scores, size, thresh, pre, post, smallest):
    """One image: boxes and scores of each level, in plain steps."""
    kept = []
    for level_boxes, level_scores in zip(boxes, scores, strict=True):
        order = level_scores.argsort(descending=True)[:pre]
        level_boxes, level_scores = level_boxes[order].clone(), level_scores[order]
        level_boxes[:, 0::2] = level_boxes[:, 0::2].clamp(0, size[1])
        level_boxes[:, 1::2] = level_boxes[:, 1::2].clamp(0, size[0])
        big = ((level_boxes[:, 2:] - level_boxes[:, :2]) > smallest).all(dim=1)
        level_boxes, level_scores = level_boxes[big], level_scores[big]
        keep = nms(level_boxes, level_scores, thresh)
        kept.append((level_boxes[keep], level_scores[keep]))
    all_boxes, all_scores = (torch.cat(parts) for parts in zip(*kept, strict=True))
    order = all_scores.argsort(descending=True)[:post]
    return all_boxes[order], all_scores[order]


@pytest.mark.parametrize(("pre", "post", "smallest"), [(1000, 1000, 0.0), (20, 12, 0.0), (25, 1000, 8.0)])
def test_proposals_against_plain_steps(pre, post, smallest):
    boxes = [torch.stack([random_boxes(n) for _ in SIZES]) for n in (60, 30)]
    scores = [torch.randn(2, n) for n in (60, 30)]
    found = find_top_rpn_proposals(boxes, scores, SIZES, 0.5, pre, post, smallest, True)
    for i, (proposals, size) in enumerate(zip(found, SIZES, strict=True)):
        want = propose_by_hand([b[i] for b in boxes], [s[i] for s in scores], size, 0.5, pre, post, smallest)
        torch.testing.assert_close(proposals.proposal_boxes.tensor, want[0])
        torch.testing.assert_close(proposals.objectness_logits, want[1])
        assert proposals.image_size == size


def test_numbers_that_are_not_finite_stop_training_and_are_dropped_in_tests():
    corner = torch.rand(2, 9, 2) * 30
    boxes, scores = [torch.cat([corner, corner + 20], dim=2)], [torch.randn(2, 9)]
    boxes[0][0, 3, 1] = float("nan")
    boxes[0][1, 2, 2] = float("inf")
    scores[0][1, 5] = float("inf")
    with pytest.raises(FloatingPointError):
        find_top_rpn_proposals(boxes, scores, SIZES, 1.0, 99, 99, 0.0, True)
    found = find_top_rpn_proposals(boxes, scores, SIZES, 1.0, 99, 99, 0.0, False)
    assert [len(f) for f in found] == [8, 7]
    assert all(f.proposal_boxes.tensor.isfinite().all() and f.objectness_logits.isfinite().all() for f in found)


def test_ground_truth_joins_the_proposals():
    proposals = [
        Instances(size, proposal_boxes=Boxes(random_boxes(3)), objectness_logits=torch.randn(3)) for size in SIZES
    ]
    gt = ground_truth(2, 0)
    joined = add_ground_truth_to_proposals(gt, proposals)
    assert [len(j) for j in joined] == [5, 3]
    torch.testing.assert_close(joined[0].proposal_boxes.tensor[3:], gt[0].gt_boxes.tensor)
    assert (joined[0].objectness_logits[3:].sigmoid() > 0.9999).all()
    assert set(joined[0].get_fields()) == {"proposal_boxes", "objectness_logits"}
    only_boxes = add_ground_truth_to_proposals([g.gt_boxes for g in gt], proposals)
    torch.testing.assert_close(only_boxes[0].proposal_boxes.tensor, joined[0].proposal_boxes.tensor)
    with pytest.raises(ValueError):
        add_ground_truth_to_proposals(gt[:1], proposals)
    proposals[0].mystery = torch.zeros(3)
    with pytest.raises((ValueError, AssertionError)):
        add_ground_truth_to_proposals(gt, proposals)


def test_head_names_its_parameters_as_checkpoints_do():
    one = StandardRPNHead(in_channels=8, num_anchors=3)
    assert {k.rsplit(".", 1)[0] for k in one.state_dict()} == {"conv", "objectness_logits", "anchor_deltas"}
    two = StandardRPNHead(in_channels=8, num_anchors=3, box_dim=4, conv_dims=[-1, 6])
    assert {"conv.conv0.weight", "conv.conv1.weight"} <= set(two.state_dict())
    logits, deltas = two([torch.randn(2, 8, 4, 5), torch.randn(2, 8, 2, 3)])
    assert [x.shape for x in logits] == [(2, 3, 4, 5), (2, 3, 2, 3)] and deltas[0].shape == (2, 12, 4, 5)
    with pytest.raises(ValueError):
        StandardRPNHead(in_channels=8, num_anchors=3, conv_dims=[-1, -5])


def test_labels_sample_and_match_by_iou():
    rpn, (_, features) = build_rpn(), inputs()
    anchors, gt = rpn.anchor_generator(list(features.values())), ground_truth(3, 0)
    labels, boxes = rpn.label_and_sample_anchors(anchors, gt)
    iou = pairwise_iou(gt[0].gt_boxes, Boxes.cat(anchors))
    positive, negative = labels[0] == 1, labels[0] == 0
    assert 0 < positive.sum() <= 16 and positive.sum() + negative.sum() == 32
    best = iou.max(dim=0)
    assert (best.values[negative] < 0.3).all()
    assert ((best.values >= 0.7) | (iou == iou.max(dim=1, keepdim=True).values).any(dim=0))[positive].all()
    torch.testing.assert_close(boxes[0][positive], gt[0].gt_boxes.tensor[best.indices[positive]])
    assert (labels[1] == 1).sum() == 0 and (labels[1] == 0).sum() == 32 and boxes[1].shape == (len(labels[1]), 4)


def test_anchors_beyond_the_image_can_be_left_out():
    rpn, (_, features) = build_rpn(BOUNDARY_THRESH=0), inputs()
    anchors = rpn.anchor_generator(list(features.values()))
    labels, _ = rpn.label_and_sample_anchors(anchors, ground_truth(3, 2))
    for label, size in zip(labels, SIZES, strict=True):
        assert (label[~Boxes.cat(anchors).inside_box(size, 0)] == -1).all()


@pytest.mark.parametrize("counts", [(3, 2), (3, 0), (0, 0)])
def test_losses_are_their_definition_and_reach_every_map(counts):
    rpn, (images, features) = build_rpn(SMOOTH_L1_BETA=0.0, BBOX_REG_LOSS_WEIGHT=2.0, LOSS_WEIGHT=0.5).train(), inputs()
    gt = ground_truth(*counts)
    with EventStorage() as storage:
        torch.manual_seed(0)
        proposals, losses = rpn(images, features, gt)
    torch.manual_seed(0)
    maps = list(features.values())
    anchors = rpn.anchor_generator(maps)
    labels, boxes = (torch.stack(x) for x in rpn.label_and_sample_anchors(anchors, gt))
    logits, deltas = rpn.rpn_head(maps)
    logits = torch.cat([x.permute(0, 2, 3, 1).reshape(2, -1) for x in logits], dim=1)
    deltas = torch.cat([x.permute(0, 2, 3, 1).reshape(2, -1, 4) for x in deltas], dim=1)
    cls = F.binary_cross_entropy_with_logits(logits[labels >= 0], labels[labels >= 0].float(), reduction="sum") / 64
    torch.testing.assert_close(losses["loss_rpn_cls"], 0.5 * cls)
    loc = torch.zeros(())
    for i in range(2):
        positive = labels[i] == 1
        if positive.any():
            want = rpn.box2box_transform.get_deltas(Boxes.cat(anchors).tensor[positive], boxes[i][positive])
            loc = loc + (deltas[i][positive] - want).abs().sum() / 64
    torch.testing.assert_close(losses["loss_rpn_loc"], 0.5 * 2.0 * loc)
    assert storage.latest()["rpn/num_pos_anchors"][0] == int((labels == 1).sum()) / 2
    assert storage.latest()["rpn/num_neg_anchors"][0] == int((labels == 0).sum()) / 2
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in rpn.parameters()) and all(f.grad is not None for f in maps)
    assert not proposals[0].proposal_boxes.tensor.requires_grad


def test_evaluation_gives_sorted_proposals_inside_the_images():
    rpn, (images, features) = build_rpn(PRE_NMS_TOPK_TEST=50, POST_NMS_TOPK_TEST=20).eval(), inputs()
    proposals, losses = rpn(images, features)
    assert losses == {}
    for found, (height, width) in zip(proposals, SIZES, strict=True):
        assert 0 < len(found) <= 20
        assert (found.objectness_logits.diff() <= 0).all()
        boxes = found.proposal_boxes.tensor
        assert boxes.min() >= 0 and boxes[:, 2].max() <= width and boxes[:, 3].max() <= height


def test_training_without_annotations_is_refused():
    rpn, (images, features) = build_rpn().train(), inputs()
    with pytest.raises((ValueError, AssertionError)):
        rpn(images, features)


@pytest.mark.embedded
@pytest.mark.parametrize("name", ["PrecomputedProposals", "RRPN"])
def test_what_is_left_out_says_so(name):
    cfg = get_cfg()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = name
    with pytest.raises(NotImplementedError, match=f"{name}.*leaves out"):
        build_proposal_generator(cfg, {})
