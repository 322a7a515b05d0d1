"""CosineOutputLayers against Eq. 7.2 written as loops, and as the box predictor of whole models."""

import math

import pytest
import torch

from dyn_d2 import add_dyn_d2_config
from dyn_d2.methods.tfa.cosine_box import EPSILON, CosineOutputLayers, cosine_scores

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage


def predictor(**arguments) -> CosineOutputLayers:
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    return CosineOutputLayers(ShapeSpec(channels=6), box2box_transform=transform, **{"num_classes": 3, **arguments})


def slow_scores(x: torch.Tensor, w: torch.Tensor, alpha: float) -> torch.Tensor:
    rows = []
    for xi in x.tolist():
        row = []
        for wj in w.tolist():
            inner = sum(a * b for a, b in zip(xi, wj, strict=True))
            lengths = (math.sqrt(sum(a * a for a in xi)) + EPSILON) * (math.sqrt(sum(b * b for b in wj)) + EPSILON)
            row.append(alpha * inner / lengths)
        rows.append(row)
    return torch.tensor(rows, dtype=x.dtype)


def test_scores_are_equation_7_2() -> None:
    layers = predictor(cosine_scale=20.0).double()
    x, prototypes = torch.randn(5, 6, dtype=torch.float64), layers.cls_score.weight.detach().clone()
    expected = slow_scores(x, prototypes, 20.0)
    torch.testing.assert_close(layers.eval()(x)[0], expected)
    scores, deltas = layers.train()(x)
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(deltas, x @ layers.bbox_pred.weight.T + layers.bbox_pred.bias)


def test_length_of_feature_and_prototype_does_not_matter() -> None:
    x, w = torch.randn(4, 6) * 10, torch.randn(3, 6)
    torch.testing.assert_close(cosine_scores(x, w, 20), cosine_scores(7 * x, 3 * w, 20), rtol=0, atol=1e-3)
    assert cosine_scores(x, w, 20).abs().max() <= 20


def test_gradient_reaches_through_both_norms() -> None:
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(cosine_scores, (x, w, scale))


def test_zero_feature_scores_zero_with_finite_gradient() -> None:
    x = torch.zeros(1, 5, requires_grad=True)
    scores = cosine_scores(x, torch.randn(3, 5), 20.0)
    assert torch.equal(scores, torch.zeros(1, 3))
    scores.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_parameters() -> None:
    assert {n: tuple(p.shape) for n, p in predictor().named_parameters()} == {
        "cls_score.weight": (4, 6),
        "bbox_pred.weight": (12, 6),
        "bbox_pred.bias": (12,),
    }
    learned = dict(predictor(cosine_scale=15.0, cosine_scale_learnable=True).named_parameters())
    assert learned["scale"].item() == 15.0
    assert predictor(cls_agnostic_bbox_reg=True).bbox_pred.out_features == 4


def test_learned_scale_gets_gradient() -> None:
    layers = predictor(cosine_scale_learnable=True)
    layers(torch.randn(2, 6))[0].square().sum().backward()
    assert layers.scale.grad.abs() > 0


def test_empty_batch_with_backward() -> None:
    layers = predictor()
    x = torch.zeros(0, 6, requires_grad=True)
    proposals = [
        Instances(
            (10, 10),
            proposal_boxes=Boxes(torch.zeros(0, 4)),
            gt_boxes=Boxes(torch.zeros(0, 4)),
            gt_classes=torch.zeros(0, dtype=torch.long),
        )
    ]
    with EventStorage():
        losses = layers.losses(layers(x), proposals)
    sum(losses.values()).backward()
    assert x.grad.shape == (0, 6)
    assert len(layers.inference(layers(x), proposals)[0][0]) == 0


def test_scale_must_be_positive() -> None:
    with pytest.raises(ValueError, match="COSINE_SCALE"):
        predictor(cosine_scale=0.0)


def model_cfg(name: str, classifier: str, masks: bool):
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH = 50
    cfg.MODEL.MASK_ON = masks
    cfg.MODEL.ROI_HEADS.NAME = name
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4"]
    cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER = classifier
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 4
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    return cfg


@pytest.mark.parametrize("name", ["DynROIHeads", "DynRes5ROIHeads"])
def test_roi_heads_choose_the_classifier_by_key(name: str) -> None:
    for classifier, kind in (("linear", FastRCNNOutputLayers), ("cosine", CosineOutputLayers)):
        heads = build_model(model_cfg(name, classifier, masks=classifier == "cosine")).roi_heads
        assert type(heads.box_predictor) is kind
        assert heads.box_predictor.cls_score.out_features == 4
        assert hasattr(heads, "mask_head") == (classifier == "cosine")
        assert heads.box_predictor.cls_score.in_features == (16 if name == "DynROIHeads" else 2048)


def test_unknown_classifier_is_named() -> None:
    with pytest.raises(ValueError, match="'angular'.*cosine.*linear"):
        build_model(model_cfg("DynROIHeads", "angular", False))
