"""Frozen parameters and buffers do not change, and nothing is frozen by a misspelt name."""

import copy

import pytest
import torch
from torch import nn

from dyn_d2.modeling.freeze import (
    VerifyFrozen,
    freeze,
    freeze_whole,
    frozen_fingerprint,
    has_frozen_parts,
    what_moves,
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.head = nn.ModuleDict({"fc1": nn.Linear(4, 4), "norm": nn.BatchNorm1d(4), "out": nn.Linear(4, 2)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head["out"](self.head["norm"](self.head["fc1"](self.backbone(x))))


def train(model: nn.Module, steps: int = 5) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(steps):
        model.train()
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()


def test_five_steps_leave_frozen_parameters_and_buffers_alone() -> None:
    model = Net()
    names = freeze(model, ["backbone", "head.fc1"])
    assert set(names) == {
        "backbone.0.weight",
        "backbone.0.bias",
        "backbone.1.weight",
        "backbone.1.bias",
        "head.fc1.weight",
        "head.fc1.bias",
    }
    before, trained = frozen_fingerprint(model), model.head["out"].weight.clone()
    statistics = model.head["norm"].running_mean.clone()
    train(model)
    assert frozen_fingerprint(model) == before
    assert "backbone.1.running_mean" in before and "head.norm.running_mean" not in before
    assert not torch.equal(trained, model.head["out"].weight)
    assert not torch.equal(statistics, model.head["norm"].running_mean)


def test_frozen_layers_stay_in_eval_and_the_rest_does_not() -> None:
    model = Net()
    freeze(model, ["backbone"])
    model.eval()
    model.train()
    assert not model.backbone[1].training and not model.backbone[2].training
    # Composite modules keep their mode: a frozen RPN still has to make training proposals.
    assert model.training and model.backbone.training and model.head["norm"].training
    assert not copy.deepcopy(model).train().backbone[1].training


def test_what_is_frozen_as_a_whole_behaves_as_in_evaluation() -> None:
    model = Net()
    assert not has_frozen_parts(model)
    freeze_whole(model.backbone)
    assert has_frozen_parts(model)
    for net in (model.train(), copy.deepcopy(model).train()):
        assert not any(module.training for module in net.backbone.modules()) and net.head["norm"].training
    before = frozen_fingerprint(model)
    train(model)
    assert frozen_fingerprint(model) == before and "backbone.1.running_mean" in before


def test_wildcards() -> None:
    model = Net()
    freeze(model, ["head.fc*"])
    assert not model.head["fc1"].weight.requires_grad and model.head["out"].weight.requires_grad


def test_pattern_without_match_lists_the_modules() -> None:
    with pytest.raises(ValueError, match=r"'bakbone'.*backbone, backbone\.0"):
        freeze(Net(), ["bakbone"])


def test_freezing_everything_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        freeze(Net(), ["backbone", "head"])


class Run:
    iter, max_iter = 3, 3


def test_what_moves_is_named() -> None:
    model = Net()
    assert "4 parameters before the end learn, such as backbone.0.w" in what_moves(model, ["backbone"], "the end")
    model.backbone.requires_grad_(False)
    assert what_moves(model, ["backbone"], "the end") == "BatchNorm1d is not frozen by MODEL.FREEZE"
    model.backbone[1].eval()
    assert what_moves(model, ["backbone"], "the end") == "Dropout is not frozen by MODEL.FREEZE"
    freeze(model, ["backbone"])
    assert what_moves(model.train(), ["backbone"], "the end") == ""


@pytest.mark.parametrize("what", ["weight", "running_mean"])
def test_hook_notices_a_change(what: str) -> None:
    model = Net()
    freeze(model, ["backbone"])
    hook = VerifyFrozen(model)
    hook.trainer = Run()
    hook.before_train()
    hook.after_train()
    with torch.no_grad():
        getattr(model.backbone[1], what)[0] += 1
    with pytest.raises(RuntimeError, match=f"backbone.1.{what}"):
        hook.after_train()
    hook.trainer.iter = 2  # a run that failed has its own error
    hook.after_train()


def test_fingerprint_takes_every_type() -> None:
    model = Net()
    freeze(model, ["backbone"])
    model.backbone.to(torch.bfloat16)
    assert len(set(frozen_fingerprint(model).values())) > 1
