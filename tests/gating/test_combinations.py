"""Each policy of gating on each kind of unit that it fits, in each task: builds, trains, evaluates with a route."""

import pytest
from combinations import build, check, refuses
from tiny_tasks import OUTPUTS, TASKS

from dyn_d2.gating.policies import POLICY_REGISTRY

KINDS = ("block", "group", "channel")
POLICIES = {name: policy for name, policy in POLICY_REGISTRY if policy.__module__.startswith("dyn_d2.gating.")}
# What is rewarded for right predictions needs a head that tells them.
TASKS_OF = {"blockdrop": ("classifier",)}
FITTING = [(name, stage, kind) for name, policy in POLICIES.items() for stage in policy.STAGES for kind in policy.KINDS]
NOT_FITTING = [(name, kind) for name, policy in POLICIES.items() for kind in KINDS if kind not in policy.KINDS]
# Other backbones under the classifier: what they are named, the units that they offer, a policy for each, and keys.
BACKBONES = [
    ("cifar_resnet", "block", "skipnet_rnn", {"MODEL__RESNETS__DEPTH": 8, "MODEL__RESNETS__OUT_FEATURES": ["res4"]}),
    ("cifar_resnet", "channel", "deepmoe", {"MODEL__RESNETS__DEPTH": 8, "MODEL__RESNETS__OUT_FEATURES": ["res4"]}),
    ("mobilenetv2", "group", "cdb", {"MODEL__RESNETS__OUT_FEATURES": ["last"]}),
]


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
