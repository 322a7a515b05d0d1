"""Every policy on every kind of unit that it fits, in every task: builds, trains a step, evaluates with a route."""

import pytest
import torch
from tiny_tasks import OUTPUTS, TASKS, batch, task_opts

from dyn_d2.config.read import read_cfg
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.gating.meta_arch.dynamic import find_policy
from dyn_d2.gating.policies import POLICY_REGISTRY
from dyn_d2.utils.errors import UserError

from detectron2.utils.events import EventStorage

KINDS = ("block", "group", "channel")
POLICIES = dict(POLICY_REGISTRY)
# What is rewarded for right predictions needs a head that tells them; PMN one that predicts from its modules.
TASKS_OF = {"pmn": ("classifier",), "blockdrop": ("classifier",)}
FITTING = [
    (name, stage, kind)
    for name, policy in POLICIES.items()
    for stage in policy.STAGES
    for kind in policy.KINDS
    if kind in KINDS  # paths are decided in a network of their own, see meta_arch/test_multipath.py
]
NOT_FITTING = [(name, kind) for name, policy in POLICIES.items() for kind in KINDS if kind not in policy.KINDS]
# Other backbones under the classifier: what they are named, the units that they offer, a policy for each, and keys.
BACKBONES = [
    ("cifar_resnet", "block", "skipnet_rnn", {"MODEL__RESNETS__DEPTH": 8, "MODEL__RESNETS__OUT_FEATURES": ["res4"]}),
    ("cifar_resnet", "channel", "deepmoe", {"MODEL__RESNETS__DEPTH": 8, "MODEL__RESNETS__OUT_FEATURES": ["res4"]}),
    ("mobilenetv2", "group", "cdb", {"MODEL__RESNETS__OUT_FEATURES": ["last"]}),
]


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
        assert 0 < route.executed <= 1.01 * route.dense + route.gates + 1  # PMN classifies more than once
        assert all(map(bool, (route.dense, route.expected)))


def refuses(model: torch.nn.Module, stage: str) -> None:
    """The task cannot reward the policy; it says so in the stage that needs it."""
    if stage == "joint":
        with EventStorage(), pytest.raises(UserError, match="is rewarded for right .* use .*ImageClassifier"):
            model(batch())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("policy", "stage", "kind"), FITTING)
def test_every_policy_on_its_units_in_every_task(task, policy, stage, kind) -> None:
    model = build(task, policy, kind, stage)
    if task not in TASKS_OF.get(policy, TASKS):
        refuses(model, stage)
        return
    check(model, OUTPUTS.get(task, "instances"), stage in POLICIES[policy].FROZEN_STAGES)


@pytest.mark.parametrize(("backbone", "kind", "policy", "keys"), BACKBONES)
def test_other_backbones_under_the_classifier(backbone, kind, policy, keys) -> None:
    check(
        build("classifier", policy, kind, MODEL__BACKBONE__NAME=f"build_gated_{backbone}_backbone", **keys),
        "scores",
        False,
    )


@pytest.mark.parametrize(("policy", "kind"), NOT_FITTING)
def test_other_combinations_say_why_not(policy, kind) -> None:
    with pytest.raises(ValueError, match=f"MODEL.POLICY.NAME {policy} decides about .* offers {kind} units"):
        build("classifier", policy, kind)


@pytest.mark.parametrize("actions", ["levels", "modules", "stop", "fixed", "random", "distribute"])
@pytest.mark.parametrize("stage", ["pretrain", "joint"])
def test_pmn_segments_from_its_modules(actions, stage):
    keys = {
        "MODEL__SEM_SEG_HEAD__NAME": "PMNHead", "MODEL__SEM_SEG_HEAD__IN_FEATURES": ["res3", "res4", "res5"],
        "MODEL__BACKBONE__NAME": "build_gated_resnet_backbone", "MODEL__POLICY__PMN__STAGES": 3,
        "MODEL__POLICY__PMN__MODULES": 3, "MODEL__POLICY__PMN__WIDTH": 8, "MODEL__POLICY__PMN__ACTIONS": actions,
    }  # fmt: skip
    model = build("semantic_fpn", "pmn", "block", stage, **keys)
    with EventStorage():
        losses = model(batch())
    learns = stage == "joint" and actions in ("levels", "modules", "stop")
    assert set(losses) == {"loss_sem_seg"} | ({"loss_policy"} if learns else set())
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values()) and model.sem_seg_head.aspp.convs[0].weight.grad.any()
    model.eval()
    with torch.no_grad():
        outputs = model(batch())
    assert [output["sem_seg"].shape for output in outputs] == [(3, 64, 64), (3, 48, 64)]
    assert all(output["route"].executed <= output["route"].dense + output["route"].gates for output in outputs)
