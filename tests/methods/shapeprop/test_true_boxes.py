"""Masks of true boxes: their shares by hand, and with a model that draws what it is told."""

import numpy as np
import pytest
import torch
from test_shape_quality import CLASSES, GROUPS, INPUTS, SIZE, shapes  # noqa: F401  a fixture
from torch import nn

from dyn_d2.config.read import read_cfg
from dyn_d2.methods.shapeprop import true_boxes
from dyn_d2.methods.shapeprop.true_boxes import TrueBoxEvaluator, shares
from dyn_d2.utils.errors import UserError


def test_shares_are_means_over_thresholds() -> None:
    overlaps = [0.3, 0.5, 0.72, 0.96]
    found = shares(np.array(overlaps))
    slow = [sum(overlap >= t / 100 for overlap in overlaps) / 4 for t in range(50, 100, 5)]
    assert found["share"] == pytest.approx(100 * sum(slow) / len(slow))
    assert found["share50"] == 75 and found["share75"] == 25 and found["IoU"] == pytest.approx(62)
    assert np.isnan(shares(np.zeros(0))["share"])


class Heads(nn.Module):
    def forward_with_given_boxes(self, features, instances):
        return []


class Painter(nn.Module):
    """What a model with masks has; ``painted`` does its work."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.roi_heads, self.device = nn.Identity(), Heads(), torch.device("cpu")

    def preprocess_image(self, batched_inputs):
        return None


def painted(mapper, model, record):
    """The left half of a box of class 0, all of others."""
    found = []
    for annotation in record["annotations"]:
        x, y, w, h = map(int, annotation["bbox"])
        mask = np.zeros((SIZE, SIZE), bool)
        mask[y : y + h, x : x + (w // 2 if annotation["category_id"] == 0 else w)] = True
        found.append((annotation, mask))
    return found[:1] if record["image_id"] == 2 else found  # no mask for the bee


def test_objects_by_hand(shapes, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr(true_boxes, "masks_of", painted)
    evaluator = TrueBoxEvaluator(read_cfg(""), Painter().train(), shapes[0], GROUPS)
    assert np.isnan(evaluator.evaluate()["true_boxes"]["share"])
    evaluator.process(INPUTS[:2], [{}, {}])
    found = evaluator.evaluate()["true_boxes"]
    assert found["share-ant"] == 100 and found["share-bee"] == 0 and found["IoU_with_masks"] == 100
    assert found["share"] == 50 and np.isnan(found["share-cat"]) and len(CLASSES) == 3


def test_a_model_without_masks_is_told(shapes) -> None:  # noqa: F811
    with pytest.raises(UserError, match="MASKS_IN_TRUE_BOXES: this model"):
        TrueBoxEvaluator(read_cfg(""), nn.Linear(1, 1), shapes[0], {}).evaluate()
