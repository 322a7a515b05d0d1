"""Box deltas and the dense regression loss."""

import math

import pytest
import torch
from torchvision.ops import generalized_box_iou

from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.structures import Boxes


def random_boxes(n: int, lowest_side: float = 4) -> torch.Tensor:
    corner = torch.rand(n, 2) * 80
    return torch.cat([corner, corner + lowest_side + torch.rand(n, 2) * 60], dim=1)


TRANSFORMS = [
    Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
    Box2BoxTransform(weights=(10.0, 8.0, 5.0, 4.0)),
]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_deltas_lead_back_to_the_target(transform):
    source = random_boxes(20)
    centre = (source[:, :2] + source[:, 2:]) / 2
    target = torch.cat([centre - 1 - torch.rand(20, 2) * 30, centre + 1 + torch.rand(20, 2) * 30], dim=1)
    torch.testing.assert_close(transform.apply_deltas(transform.get_deltas(source, target), source), target)


def test_deltas_are_the_definition_of_rcnn():
    source, target = torch.tensor([[10.0, 20.0, 30.0, 60.0]]), torch.tensor([[14.0, 10.0, 24.0, 90.0]])
    got = Box2BoxTransform((10.0, 20.0, 5.0, 4.0)).get_deltas(source, target)
    want = [10 * (19 - 20) / 20, 20 * (50 - 40) / 40, 5 * math.log(10 / 20), 4 * math.log(80 / 40)]
    torch.testing.assert_close(got, torch.tensor([want]))


def test_each_class_has_its_own_deltas():
    boxes, deltas, transform = random_boxes(6), torch.randn(6, 12), TRANSFORMS[1]
    together = transform.apply_deltas(deltas, boxes)
    for k in range(3):
        part = slice(4 * k, 4 * k + 4)
        torch.testing.assert_close(together[:, part], transform.apply_deltas(deltas[:, part], boxes))
    assert transform.apply_deltas(deltas[:0], boxes[:0]).shape == (0, 12)


def test_growth_is_clamped_and_half_precision_widened():
    box = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    grown = Box2BoxTransform((1.0, 1.0, 1.0, 1.0)).apply_deltas(torch.tensor([[0.0, 0.0, 1e4, 1e4]]).half(), box)
    assert grown.dtype == torch.float32
    torch.testing.assert_close(grown[:, 2:] - grown[:, :2], torch.full((1, 2), 1000.0))


def test_sources_without_width_are_refused():
    empty = torch.tensor([[5.0, 5.0, 5.0, 9.0]])
    with pytest.raises((ValueError, AssertionError, RuntimeError)):
        Box2BoxTransform((1.0, 1.0, 1.0, 1.0)).get_deltas(empty, random_boxes(1))


def dense_case():
    levels = [Boxes(random_boxes(6)), Boxes(random_boxes(3))]
    deltas = [(torch.randn(2, n, 4) * 0.2).requires_grad_() for n in (6, 3)]
    return levels, deltas, [random_boxes(9), random_boxes(9)]


def loss_by_loops(levels, transform, deltas, gt, mask, kind, beta):
    anchors, total = torch.cat([a.tensor for a in levels]), torch.zeros(())
    for image in range(2):
        for i in range(9):
            if not mask[image, i]:
                continue
            delta = torch.cat([d[image] for d in deltas])[i : i + 1]
            if kind == "giou":
                box = transform.apply_deltas(delta, anchors[i : i + 1])
                total = total + 1 - generalized_box_iou(box, gt[image][i : i + 1]).sum()
                continue
            error = (delta - transform.get_deltas(anchors[i : i + 1], gt[image][i : i + 1])).abs()
            total = (
                total + (torch.where(error < beta, error**2 / (2 * beta), error - beta / 2) if beta else error).sum()
            )
    return total


@pytest.mark.parametrize(("kind", "beta"), [("smooth_l1", 0.0), ("smooth_l1", 0.5), ("giou", 0.0)])
def test_dense_loss_against_loops(kind, beta):
    levels, deltas, gt = dense_case()
    mask = torch.rand(2, 9) < 0.5
    got = _dense_box_regression_loss(levels, TRANSFORMS[0], deltas, gt, mask, kind, beta)
    torch.testing.assert_close(got, loss_by_loops(levels, TRANSFORMS[0], deltas, gt, mask, kind, beta))
    got.backward()
    grads = torch.cat([d.grad for d in deltas], dim=1)
    assert torch.equal(grads.abs().sum(-1) > 0, mask)


@pytest.mark.parametrize("kind", ["smooth_l1", "giou", "diou", "ciou"])
def test_dense_loss_of_nothing_is_zero_with_a_gradient(kind):
    levels, deltas, _ = dense_case()
    no_boxes = [torch.zeros(9, 4)] * 2  # what images without ground truth bring
    loss = _dense_box_regression_loss(
        levels, TRANSFORMS[0], deltas, no_boxes, torch.zeros(2, 9, dtype=torch.bool), kind
    )
    loss.backward()
    assert loss.item() == 0 and all((d.grad == 0).all() for d in deltas)


@pytest.mark.parametrize("kind", ["giou", "diou", "ciou"])
def test_iou_losses_vanish_for_the_right_boxes_only(kind):
    levels, _, _ = dense_case()
    anchors = torch.cat([a.tensor for a in levels])
    gt = [anchors.clone(), anchors + 9]
    zero = [torch.zeros(2, 6, 4), torch.zeros(2, 3, 4)]
    per_image = [torch.zeros(2, 9, dtype=torch.bool) for _ in range(2)]
    per_image[0][0], per_image[1][1] = True, True
    right, wrong = (_dense_box_regression_loss(levels, TRANSFORMS[0], zero, gt, m, kind).item() for m in per_image)
    assert right == pytest.approx(0, abs=1e-4) and wrong > 0.1


def test_dense_loss_takes_tensors_all_anchors_and_no_unknown_kind():
    levels, deltas, gt = dense_case()
    mask = torch.ones(2, 9, dtype=torch.bool)
    want = _dense_box_regression_loss(levels, TRANSFORMS[0], deltas, gt, mask)
    tensors = [a.tensor for a in levels]
    torch.testing.assert_close(_dense_box_regression_loss(tensors, TRANSFORMS[0], deltas, gt, mask), want)
    one = [d[:1] for d in deltas]
    whole = _dense_box_regression_loss(tensors, TRANSFORMS[0], one, gt[:1], ...)
    torch.testing.assert_close(whole, _dense_box_regression_loss(tensors, TRANSFORMS[0], one, gt[:1], mask[:1]))
    with pytest.raises(ValueError, match="huber"):
        _dense_box_regression_loss(levels, TRANSFORMS[0], deltas, gt, mask, "huber")
