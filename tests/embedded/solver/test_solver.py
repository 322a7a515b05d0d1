"""Optimizer groups and learning-rate schedules."""

import math

import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.solver import build_lr_scheduler, build_optimizer, get_default_optimizer_params


class _Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.GroupNorm(2, 4)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.tied = self.conv


def _rates(cfg) -> list[float]:
    optimizer = build_optimizer(cfg, _Model())
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(cfg.SOLVER.MAX_ITER):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def _cfg(**solver):
    cfg = get_cfg()
    for key, value in {"BASE_LR": 0.1, "MAX_ITER": 20, "STEPS": (10, 16), "WARMUP_ITERS": 4, **solver}.items():
        cfg.SOLVER[key] = value
    return cfg


def test_multistep_with_linear_warmup_equals_the_formula():
    cfg = _cfg(WARMUP_FACTOR=0.1)
    for step, rate in enumerate(_rates(cfg)):
        expected = 0.1 * 0.1 ** ((step >= 10) + (step >= 16))
        if step < 4:
            expected *= 0.1 + 0.9 * step / 4
        assert rate == pytest.approx(expected, rel=1e-6), step


def test_cosine_equals_the_formula():
    cfg = _cfg(LR_SCHEDULER_NAME="WarmupCosineLR", WARMUP_ITERS=0, BASE_LR_END=0.02)
    for step, rate in enumerate(_rates(cfg)):
        assert rate == pytest.approx(0.02 + 0.08 * (1 + math.cos(math.pi * step / 20)) / 2, rel=1e-6)


def test_constant_warmup_and_a_step_after_the_end():
    rates = _rates(_cfg(WARMUP_METHOD="constant", WARMUP_FACTOR=0.5, STEPS=(10, 99)))
    assert rates[:5] == pytest.approx([0.05] * 4 + [0.1]) and rates[-1] == pytest.approx(0.01)


@pytest.mark.embedded
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("LR_SCHEDULER_NAME", "Polynomial", "WarmupCosineLR"),
        ("STEPS", (16, 10), "increase"),
        ("WARMUP_METHOD", "sudden", "linear"),
    ],
)
def test_wrong_values_are_named(key, value, message):
    cfg = _cfg(**{key: value})
    with pytest.raises(ValueError, match=f"(?s){key}.*{message}"):
        build_lr_scheduler(cfg, build_optimizer(cfg, _Model()))


def test_groups_hold_each_trainable_parameter_once():
    model = _Model()
    groups = get_default_optimizer_params(
        model, base_lr=1.0, weight_decay=0.5, weight_decay_norm=0.0, bias_lr_factor=2.0, weight_decay_bias=0.25
    )
    options = {id(p): {k: v for k, v in g.items() if k != "params"} for g in groups for p in g["params"]}
    assert len(options) == sum(len(g["params"]) for g in groups) == 4
    assert options[id(model.conv.weight)] == {"lr": 1.0, "weight_decay": 0.5}
    assert options[id(model.conv.bias)] == options[id(model.norm.bias)] == {"lr": 2.0, "weight_decay": 0.25}
    assert options[id(model.norm.weight)] == {"lr": 1.0, "weight_decay": 0.0}


def test_rate_by_name_and_its_errors():
    groups = get_default_optimizer_params(_Model(), base_lr=1.0, lr_factor_func=lambda name: 1 + name.count("norm"))
    assert {g["lr"] for g in groups} == {1.0, 2.0}
    with pytest.raises(ValueError, match="base_lr"):
        get_default_optimizer_params(_Model(), bias_lr_factor=2.0)
    with pytest.raises(ValueError, match="bias"):
        get_default_optimizer_params(_Model(), weight_decay_bias=0.0, overrides={"bias": {"lr": 1.0}})


@pytest.mark.parametrize(("kind", "expected"), [("value", [0.5, -0.5]), ("norm", [0.3, -0.4])])
def test_gradient_clipping(kind, expected):
    cfg = _cfg(MOMENTUM=0.0, WEIGHT_DECAY=0.0, BASE_LR=1.0)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = kind
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.5
    model = nn.Linear(2, 1, bias=False)
    optimizer = build_optimizer(cfg, model)
    before = model.weight.detach().clone()
    model.weight.grad = torch.tensor([[3.0, -4.0]])
    optimizer.step()
    torch.testing.assert_close((before - model.weight)[0], torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.embedded
def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match="frozen"):
        build_optimizer(_cfg(), nn.Linear(1, 1).requires_grad_(False))
