"""The box predictor: losses against slow references, and what is left of its predictions as detections."""

import math

import pytest
import torch
from torch.nn import functional as F

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage

SIZE = (60, 80)
WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def predictor(num_classes=3, features=8, **kwargs):
    transform = Box2BoxTransform(weights=WEIGHTS)
    return FastRCNNOutputLayers(
        ShapeSpec(channels=features), box2box_transform=transform, num_classes=num_classes, **kwargs
    )


def random_boxes(n):
    corner = torch.rand(n, 2) * 40
    return torch.cat([corner, corner + 5 + torch.rand(n, 2) * 15], dim=1)


def proposals(*labels):
    """One image for each list of labels."""
    result = []
    for gt_classes in labels:
        x = Instances(SIZE, proposal_boxes=Boxes(random_boxes(len(gt_classes))))
        x.gt_classes = torch.tensor(gt_classes, dtype=torch.long)
        x.gt_boxes = Boxes(random_boxes(len(gt_classes)))
        result.append(x)
    return result


def offsets_by_hand(source, target):
    """Faster R-CNN, Eq. 2, with the weights of the predictor."""
    w, h = source[2] - source[0], source[3] - source[1]
    tw, th = target[2] - target[0], target[3] - target[1]
    dx = ((target[0] + target[2]) - (source[0] + source[2])) / 2 / w
    dy = ((target[1] + target[3]) - (source[1] + source[3])) / 2 / h
    return [k * v for k, v in zip(WEIGHTS, (dx, dy, math.log(tw / w), math.log(th / h)), strict=True)]


@pytest.mark.parametrize("agnostic", [False, True])
def test_losses_are_those_of_the_paper(agnostic):
    layers, regions = predictor(cls_agnostic_bbox_reg=agnostic), proposals([0, 3, 2], [1, 3])
    logits, deltas = layers(torch.randn(5, 8))
    with EventStorage():
        losses = layers.losses((logits, deltas), regions)
    labels = [0, 3, 2, 1, 3]
    classification = sum(-F.log_softmax(logits[i], dim=0)[label] for i, label in enumerate(labels)) / 5
    sources = [b for x in regions for b in x.proposal_boxes.tensor.tolist()]
    targets = [b for x in regions for b in x.gt_boxes.tensor.tolist()]
    regression = 0
    for i, label in enumerate(labels):
        if label < 3:
            wanted = torch.tensor(offsets_by_hand(sources[i], targets[i]))
            found = deltas[i] if agnostic else deltas[i, 4 * label : 4 * label + 4]
            regression = regression + (found - wanted).abs().sum() / 5
    torch.testing.assert_close(losses["loss_cls"], classification)
    torch.testing.assert_close(losses["loss_box_reg"], regression)


def test_loss_weights():
    regions, x = proposals([0, 3]), torch.randn(2, 8)
    plain = predictor()
    with EventStorage():
        losses = plain.losses(plain(x), regions)
        plain.loss_weight = {"loss_box_reg": 3.0}
        weighted = plain.losses(plain(x), regions)
        assert predictor(loss_weight=2.0).loss_weight == {"loss_cls": 2.0, "loss_box_reg": 2.0}
    torch.testing.assert_close(weighted["loss_cls"], losses["loss_cls"])
    torch.testing.assert_close(weighted["loss_box_reg"], 3 * losses["loss_box_reg"])


NO_REGIONS_BY_SIGMOID = pytest.param([[], []], True, marks=pytest.mark.embedded)  # Detectron2 gives a constant


@pytest.mark.parametrize(
    ("images", "sigmoid"),
    [([[]], False), ([[], []], False), NO_REGIONS_BY_SIGMOID, ([[3, 3]], False), ([[3], []], True), ([[3], []], False)],
)
def test_without_foreground_the_losses_are_finite_and_have_gradients(images, sigmoid):
    layers, regions = predictor(use_sigmoid_ce=sigmoid), proposals(*images)
    for x in regions:
        x.remove("gt_boxes")  # an image without objects has no such field
    features = torch.randn(sum(map(len, regions)), 8, requires_grad=True)
    with EventStorage():
        losses = layers.losses(layers(features), regions)
    sum(losses.values()).backward()
    assert losses["loss_box_reg"] == 0 and losses["loss_cls"].isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layers.parameters())


def test_sigmoid_loss_is_a_binary_problem_for_each_class():
    layers = predictor(use_sigmoid_ce=True)
    logits, labels = torch.randn(4, 4), torch.tensor([0, 3, 2, 2])
    expected = 0.0
    for i in range(4):
        for k in range(3):
            p = 1 / (1 + math.exp(-logits[i, k]))
            expected -= math.log(p if labels[i] == k else 1 - p)
    assert layers.sigmoid_cross_entropy_loss(logits, labels).item() == pytest.approx(expected / 4, rel=1e-5)


def test_logged_statistics():
    layers = predictor()
    logits = F.one_hot(torch.tensor([0, 1, 3, 3, 0]), 4).float()
    with EventStorage() as storage:
        layers.losses((logits, torch.zeros(5, 12)), proposals([0, 2, 1], [3, 3]))
    logged = {key: value for key, (value, _) in storage.latest().items()}
    assert logged == pytest.approx(
        {"fast_rcnn/cls_accuracy": 2 / 5, "fast_rcnn/fg_cls_accuracy": 1 / 3, "fast_rcnn/false_negative": 1 / 3}
    )


def detections_by_hand(boxes, scores, score_thresh, nms_thresh, topk):
    """Non-maximum suppression class by class with loops: rows of (region, class, score)."""
    kept = []
    for k in range(scores.shape[1] - 1):
        order = sorted(range(len(scores)), key=lambda i: -scores[i, k].item())
        chosen = []
        for i in order:
            own = boxes[i].view(-1, 4)[k if boxes.shape[1] > 4 else 0][None]
            if scores[i, k] > score_thresh and all(pairwise_iou(Boxes(own), Boxes(b)) <= nms_thresh for _, b in chosen):
                chosen.append((i, own))
        kept += [(i, k, scores[i, k].item()) for i, _ in chosen]
    return sorted(kept, key=lambda row: -row[2])[:topk]


@pytest.mark.parametrize("agnostic", [False, True])
def test_detections_agree_with_loops(agnostic):
    boxes = random_boxes(20 if agnostic else 60).view(20, -1)
    scores = torch.randn(20, 4).softmax(dim=1)
    expected = detections_by_hand(boxes, scores, 0.2, 0.3, 12)
    (found,), (regions,) = fast_rcnn_inference([boxes], [scores], [SIZE], 0.2, 0.3, 12)
    rows = list(zip(regions.tolist(), found.pred_classes.tolist(), found.scores.tolist(), strict=True))
    assert rows == expected and len(rows) > 3
    (all_found,), _ = fast_rcnn_inference([boxes], [scores], [SIZE], 0.0, 1.0, -1)
    assert len(all_found) == 60


def test_detections_lie_inside_the_image():
    boxes = torch.tensor([[-5.0, -5.0, 200.0, 30.0]])
    (found,), _ = fast_rcnn_inference([boxes], [torch.tensor([[0.9, 0.1]])], [SIZE], 0.5, 0.5, 10)
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 80, 30]]


@pytest.mark.embedded
def test_regions_that_are_not_finite_give_no_detection_and_shift_no_index():
    boxes, scores = torch.tensor([[0.0, 0, 9, 9], [20, 20, 30, 30], [40, 40, 50, 50]]), torch.full((3, 2), 0.5)
    boxes[0, 2] = float("inf")
    (found,), (regions,) = fast_rcnn_inference([boxes], [scores], [SIZE], 0.1, 0.5, 10)
    assert sorted(regions.tolist()) == [1, 2] and found.pred_boxes.tensor.isfinite().all()


def test_inference_of_an_image_without_proposals():
    layers = predictor().eval()
    empty = Instances(SIZE, proposal_boxes=Boxes(torch.zeros(0, 4)))
    (found,), (regions,) = layers.inference(layers(torch.zeros(0, 8)), [empty])
    assert len(found) == len(regions) == 0 and found.pred_boxes.tensor.shape == (0, 4)


def test_boxes_for_the_true_classes():
    layers, regions = predictor(), proposals([0, 3], [2])
    predictions = layers(torch.randn(3, 8))
    everything = torch.cat(layers.predict_boxes(predictions, regions))
    first, second = layers.predict_boxes_for_gt_classes(predictions, regions)
    torch.testing.assert_close(first[0], everything[0, :4])
    torch.testing.assert_close(second[0], everything[2, 8:])
    assert first.shape == (2, 4) and regions[0].gt_classes.tolist() == [0, 3]


def test_from_config_reads_every_key():
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.3
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 0.4
    cfg.TEST.DETECTIONS_PER_IMAGE = 7
    head = cfg.MODEL.ROI_BOX_HEAD
    head.CLS_AGNOSTIC_BBOX_REG, head.BBOX_REG_LOSS_TYPE, head.BBOX_REG_LOSS_WEIGHT = True, "giou", 2.0
    head.SMOOTH_L1_BETA, head.USE_SIGMOID_CE = 0.5, True
    layers = FastRCNNOutputLayers(cfg, ShapeSpec(channels=4, height=2, width=3))
    assert layers.cls_score.weight.shape == (6, 24) and layers.bbox_pred.weight.shape == (4, 24)
    assert (layers.test_score_thresh, layers.test_nms_thresh, layers.test_topk_per_image) == (0.3, 0.4, 7)
    assert (layers.box_reg_loss_type, layers.smooth_l1_beta, layers.use_sigmoid_ce) == ("giou", 0.5, True)
    assert layers.loss_weight == {"loss_box_reg": 2.0}
    logits, deltas = layers(torch.zeros(2, 4, 2, 3))
    assert logits.shape == (2, 6) and deltas.shape == (2, 4)
