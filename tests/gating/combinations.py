"""One training step and one evaluation of a policy in a task, and how a task refuses a policy that it cannot reward."""

import pytest
import torch
from tiny_tasks import batch, task_opts

from dyn_d2.config.read import read_cfg
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.gating.meta_arch.dynamic import find_policy
from dyn_d2.utils.errors import UserError

from detectron2.utils.events import EventStorage


def build(task: str, policy: str, kind: str, stage: str = "", **more) -> torch.nn.Module:
    keys = {"MODEL__POLICY__NAME": policy, "MODEL__POLICY__STAGE": stage, "MODEL__GATED__UNIT": kind, **more}
    return DynTrainer.build_model(read_cfg("", task_opts(task, **keys)))


def check(model: torch.nn.Module, output: str, frozen: bool) -> None:
    """One training step and one evaluation."""
    policy = find_policy(model.backbone)
    with EventStorage() as storage:
        losses = model(batch())
    assert all(torch.isfinite(loss) for loss in losses.values()), losses
    sum(losses.values()).backward()
    gates = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    if gates and getattr(policy, "stage", "") != "pretrain":  # a stage for the network alone
        reached = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in gates]
        assert sum(reached) > len(gates) / 2
    assert not (frozen and gates)
    scalars = storage.latest()
    assert all(0 <= scalars[f"gate_rate/{unit.name}"][0] <= 1 for unit in policy.units)
    assert scalars["gates/executed_share"][0] > 0 and 0 <= scalars["gates/entropy"][0] <= 1

    model.eval()
    with torch.no_grad():
        outputs = model(batch())
    assert len(outputs) == 2
    for result in outputs:
        route = result["route"]
        assert output in result and list(route.open) == [unit.name for unit in policy.units]
        assert all(route.open[unit.name].shape == (unit.size,) for unit in policy.units)
        assert 0 < route.executed <= 1.01 * route.dense + route.gates + 1  # some classify more than once
        assert all(map(bool, (route.dense, route.expected)))


def refuses(model: torch.nn.Module, stage: str) -> None:
    """The task cannot reward the policy; it says so in the stage that needs it."""
    if stage == "joint":
        with EventStorage(), pytest.raises(UserError, match="is rewarded for right .* use .*ImageClassifier"):
            model(batch())
