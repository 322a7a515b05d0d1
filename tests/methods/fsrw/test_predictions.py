"""Boxes of cells, scores and detections of YOLOv2 and FSRW; the detection layers."""

import math

import pytest
import torch

from dyn_d2.methods.fsrw.yolo import DetectionLayers, Predictions, decode, detect, pairwise_iou_cxcywh

from detectron2.layers import ShapeSpec

ANCHORS = torch.tensor([[1.0, 1.5], [2.5, 2.0]])


def test_decoding_is_the_formula_cell_by_cell():
    offsets = torch.randn(2, 3, 2, 4, 4, 5)
    boxes = decode(offsets, ANCHORS)
    assert boxes.shape == (2, 3, 2, 4, 5, 4)
    for a, y, x in ((0, 0, 0), (1, 3, 4), (0, 2, 1)):
        tx, ty, tw, th = offsets[1, 2, a, :, y, x].tolist()
        expected = [
            1 / (1 + math.exp(-tx)) + x, 1 / (1 + math.exp(-ty)) + y,
            ANCHORS[a, 0].item() * math.exp(tw), ANCHORS[a, 1].item() * math.exp(th),
        ]  # fmt: skip
        assert boxes[1, 2, a, y, x].tolist() == pytest.approx(expected, rel=1e-5)


def test_iou_of_centres_and_sizes():
    boxes = torch.tensor([[1.0, 1.0, 2.0, 2.0], [2.0, 1.0, 2.0, 2.0], [9.0, 9.0, 1.0, 1.0]])
    assert pairwise_iou_cxcywh(boxes[0], boxes).tolist() == [1.0, pytest.approx(1 / 3), 0.0]
    assert pairwise_iou_cxcywh(boxes[:0, None], boxes).shape == (0, 3)


def test_scores_are_calibrated_over_the_classes():
    outputs = torch.randn(2, 3, 2 * 6, 4, 5)
    found = Predictions.by_class(outputs, 2)
    assert found.offsets.shape == (2, 3, 2, 4, 4, 5) and found.classes.shape == (2, 3, 2, 4, 5)
    assert torch.equal(found.classes[:, :, 1], outputs[:, :, 11])
    assert torch.equal(found.objectness[:, :, 0], outputs[:, :, 4])
    shares = found.scores() / found.objectness.sigmoid()
    torch.testing.assert_close(shares.sum(1), torch.ones(2, 2, 4, 5))
    torch.testing.assert_close(found.scores(softmax=False), found.objectness.sigmoid() * found.classes.sigmoid())


def test_shared_predictions_order_classes_first():
    outputs, classes = torch.randn(2, 10, 4, 5), torch.randn(2, 3 * 2, 4, 5)
    found = Predictions.shared(outputs, classes, 2)
    assert found.offsets.shape == (2, 1, 2, 4, 4, 5)
    assert torch.equal(found.classes[:, 2, 1], classes[:, 5])
    assert torch.equal(found.objectness[:, 0, 1], outputs[:, 9])


@pytest.mark.parametrize("slots", [1, 3])
def test_detections_are_in_pixels_and_apart_by_class(slots):
    found = Predictions(
        torch.zeros(1, slots, 2, 4, 4, 5), torch.full((1, slots, 2, 4, 5), -9.0), torch.zeros(1, 3, 2, 4, 5)
    )
    found.objectness[0, :, 1, 2, 3] = 9.0
    found.classes[0, 1, 1, 2, 3] = 2.0
    limits = {"score_thresh": 0.05, "nms_thresh": 0.45, "topk": 10}
    (instances,) = detect(found, ANCHORS, (128, 160), **limits)
    # The box of cell (3, 2): centre (3.5, 2.5) cells of 32 pixels, 2.5 x 2 cells.
    expected = torch.tensor([72.0, 48.0, 152.0, 112.0])
    assert len(instances) == 3 and instances.pred_classes[0] == 1
    torch.testing.assert_close(instances.pred_boxes.tensor, expected.expand(3, 4))
    probabilities = torch.tensor([0.0, 2.0, 0.0]).softmax(0) * torch.tensor(9.0).sigmoid()
    torch.testing.assert_close(instances.scores[0], probabilities[1])
    assert len(detect(found, ANCHORS, (128, 160), **{**limits, "topk": 2})[0]) == 2


def test_passthrough_keeps_every_number():
    layers = DetectionLayers({"conv13": ShapeSpec(channels=8), "conv18": ShapeSpec(channels=12)}, width=0.05, norm="")
    assert layers.channels == {"conv13": 8, "conv20": 51, "conv22": 51}
    seen = []
    layers.conv22.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    conv13, conv18 = torch.randn(2, 8, 6, 4), torch.randn(2, 12, 3, 2)
    assert layers({"conv13": conv13, "conv18": conv18}).shape == (2, 51, 3, 2)
    narrow = layers.conv21(conv13)
    assert seen[0].shape == (2, 4 * 4 + 51, 3, 2)
    assert torch.equal(seen[0][:, :16, 1, 0].sort(1)[0], narrow[:, :, 2:4, 0:2].flatten(1).sort(1)[0])
