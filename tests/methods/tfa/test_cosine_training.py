"""How the cosine classifier learns: as published, whatever norm its rows came with."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from dyn_d2.methods.tfa.cosine_box import EPSILON, CosineOutputLayers, cosine_scores

from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform

TOY_CLASSES, TOY_WIDTH, TOY_STEPS, TOY_RATE = 20, 1024, 50, 0.001


def predictor(classes: int, width: int, **arguments) -> CosineOutputLayers:
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    return CosineOutputLayers(ShapeSpec(channels=width), box2box_transform=transform, num_classes=classes, **arguments)


def slow_training(w: list, x: list, labels: list, steps: int, rate: float, momentum: float, decay: float) -> list:
    """Rows after ``steps`` of SGD as the published code does it: rows become unit vectors, then the gradient of the
    mean cross entropy of 20 <x/|x|, w> by w."""
    d = len(x[0])
    hats = [[a / (math.sqrt(sum(b * b for b in xi)) + EPSILON) for a in xi] for xi in x]
    speed = [[0.0] * d for _ in w]
    for step in range(steps):
        norms = [math.sqrt(sum(a * a for a in row)) + EPSILON for row in w]
        w = [[a / norm for a in row] for row, norm in zip(w, norms, strict=True)]
        gradient = [[decay * a for a in row] for row in w]
        for hat, label in zip(hats, labels, strict=True):
            scores = [20 * sum(a * b for a, b in zip(hat, row, strict=True)) for row in w]
            total = sum(math.exp(s) for s in scores)
            for j, s in enumerate(scores):
                push = 20 * (math.exp(s) / total - (j == label)) / len(x)
                gradient[j] = [g + push * a for g, a in zip(gradient[j], hat, strict=True)]
        speed = [
            [(momentum * v if step else 0.0) + g for v, g in zip(vs, gs, strict=True)]
            for vs, gs in zip(speed, gradient, strict=True)
        ]
        w = [[a - rate * v for a, v in zip(row, vs, strict=True)] for row, vs in zip(w, speed, strict=True)]
    return w


def test_training_equals_the_published_one_written_as_loops() -> None:
    torch.manual_seed(0)
    layers = predictor(3, 6).double().train()
    with torch.no_grad():
        layers.cls_score.weight.mul_(70)  # of any norm
    start = layers.cls_score.weight.detach().tolist()
    x, labels = torch.randn(5, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 1])
    optimizer = torch.optim.SGD([layers.cls_score.weight], lr=0.05, momentum=0.9, weight_decay=0.01)
    for _ in range(6):
        loss = F.cross_entropy(layers(x)[0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    expected = slow_training(start, x.tolist(), labels.tolist(), 6, 0.05, 0.9, 0.01)
    torch.testing.assert_close(layers.cls_score.weight, torch.tensor(expected, dtype=torch.float64))


def toy() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x, labels, start rows): features as a box head's, not below 0, around a centre for each class."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(TOY_CLASSES + 1, TOY_WIDTH, generator=generator)
    labels = torch.arange(TOY_CLASSES + 1).repeat_interleave(8)
    x = F.relu(centres[labels] + torch.randn(len(labels), TOY_WIDTH, generator=generator))
    return x, labels, torch.randn(TOY_CLASSES + 1, TOY_WIDTH, generator=generator)


def loss_after(scores, rows: torch.Tensor) -> float:
    """Loss of the toy after TOY_STEPS of SGD; ``scores`` of (x, rows)."""
    x, labels, _ = toy()
    optimizer = torch.optim.SGD([rows], lr=TOY_RATE, momentum=0.9, weight_decay=1e-4)
    for _ in range(TOY_STEPS):
        loss = F.cross_entropy(scores(x, rows), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return F.cross_entropy(cosine_scores(x, rows.detach(), 20.0), labels).item()


def test_the_norm_of_the_first_rows_does_not_change_the_speed() -> None:
    """Numbers that docs/tfa.md gives."""
    _, _, start = toy()
    rows = {norm: F.normalize(start) * norm for norm in (0.32, 1.0, 3.0)}
    layers = predictor(TOY_CLASSES, TOY_WIDTH).train()

    def published(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return layers(x)[0]

    for given in rows.values():
        with torch.no_grad():
            layers.cls_score.weight.copy_(given)
        assert loss_after(published, layers.cls_score.weight) == pytest.approx(1.03, abs=0.01)
    through_the_norm = [loss_after(lambda x, w: cosine_scores(x, w, 20.0), r.requires_grad_()) for r in rows.values()]
    assert through_the_norm == pytest.approx([0.018, 1.04, 2.76], abs=0.01)


def test_rows_have_norm_one_in_training_only() -> None:
    layers, x = predictor(3, 6), torch.randn(4, 6)
    with torch.no_grad():
        layers.cls_score.weight.mul_(1000)
    before = {name: tensor.clone() for name, tensor in layers.state_dict().items()}
    scores, deltas = layers.eval()(x)
    assert all(torch.equal(before[name], tensor) for name, tensor in layers.state_dict().items())
    again, same = layers.train()(x)
    torch.testing.assert_close(again, scores, rtol=0, atol=1e-3)
    assert torch.equal(same, deltas)
    norms = layers.cls_score.weight.detach().norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(4), rtol=0, atol=1e-4)
    layers.cls_score.weight.requires_grad_(False).mul_(3)  # frozen: nothing changes
    before = layers.cls_score.weight.clone()
    torch.testing.assert_close(layers(x)[0], scores, rtol=0, atol=1e-3)
    assert torch.equal(layers.cls_score.weight, before)


def test_two_forward_passes_before_one_backward() -> None:
    layers = predictor(3, 6).train()
    x = torch.randn(4, 6, requires_grad=True)
    (layers(x)[0].sum() + layers(2 * x)[0].sum()).backward()
    both = layers.cls_score.weight.grad.clone()
    layers.zero_grad()
    layers(x)[0].sum().backward()
    layers(2 * x)[0].sum().backward()
    torch.testing.assert_close(layers.cls_score.weight.grad, both, rtol=1e-3, atol=1e-4)


def test_a_checkpoint_of_any_norm_loads_and_scores_the_same() -> None:
    old = predictor(3, 6).eval()
    with torch.no_grad():
        old.cls_score.weight.mul_(torch.tensor([[30.0], [200.0], [1.0], [90.0]]))
    new = predictor(3, 6)
    new.load_state_dict(copy.deepcopy(old.state_dict()), strict=True)
    x = torch.randn(5, 6)
    new.train()(x)
    torch.testing.assert_close(new.eval()(x)[0], old(x)[0], rtol=0, atol=0.01)
