"""Stage "fixed": the policy stays as it is, and the network trains on the routes that evaluation takes."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from tiny_tasks import batch, task_opts
from toy_gated import ask, features_for, make

from dyn_d2.config.derive import build_cfg
from dyn_d2.config.read import read_cfg
from dyn_d2.engine.stages import StageError
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.gating import recording
from dyn_d2.gating.policies.base import FIXED, POLICY_REGISTRY, Policy
from dyn_d2.gating.stages import plan, previous_stages

from detectron2.utils.events import EventStorage

WITH = [(name, kind) for name, policy in POLICY_REGISTRY if FIXED in policy.STAGES for kind in policy.KINDS]


@pytest.mark.parametrize(("name", "kind"), WITH)
def test_training_decides_as_evaluation_does_and_leaves_no_gradient_in_the_gates(name, kind):
    policy = make(name, "STAGE", FIXED, kind=kind).train()
    features, images = [x.requires_grad_() for x in features_for(policy)], torch.randn(5, 3, 32, 32)
    assert not policy.training and not any(parameter.requires_grad for parameter in policy.parameters())
    trained = ask(policy, features, images).steps
    for a, b in zip(trained, ask(policy.eval(), features, images).steps, strict=True):
        assert torch.equal(a.decision.gate, b.decision.gate) and not a.decision.relaxed
        assert a.decision.prob is not None and not a.decision.prob.requires_grad


def test_all_learning_policies_of_gating_have_a_stage_in_which_they_are_frozen():
    for name in ("skipnet_rnn", "skipnet_ffgate1", "skipnet_ffgate2", "convnet_aig", "cdb", "blockdrop", "deepmoe"):
        assert POLICY_REGISTRY.get(name).FROZEN_STAGES


def test_the_page_names_the_learning_policies_without_such_a_stage():
    page = (Path(__file__).resolve().parents[2] / "docs" / "gating.md").read_text()
    named = re.findall(r"`(\S+)`", re.search(r"There is none for(.*?)\(", page, flags=re.S)[1])
    learning = {name: policy for name, policy in POLICY_REGISTRY if policy.losses is not Policy.losses}
    without = [name for name, policy in learning.items() if not policy.FROZEN_STAGES]
    assert named and all(any(fnmatch(name, pattern) for pattern in named) for name in without)
    assert not any(fnmatch(name, pattern) for name in set(learning) - set(without) for pattern in named)


def test_a_step_trains_the_blocks_that_ran_and_leaves_the_others_and_all_gates_alone():
    keys = {"MODEL__POLICY__NAME": "convnet_aig", "MODEL__POLICY__STAGE": FIXED}
    model = DynTrainer.build_model(read_cfg("", task_opts("classifier", **keys))).train()
    policy = model.backbone.policy
    closed, opened = policy.units[1].name, policy.units[2].name
    for index, bias in ((1, -50.0), (2, 50.0)):
        policy.gates[index].scores.bias.data.copy_(torch.tensor([-bias, bias]))
    statistics = model.backbone.get_submodule(closed).conv1.norm.running_mean.clone()
    with EventStorage(), recording() as trace:
        losses = model(batch())
    assert set(losses) == {"loss_cls"}
    losses["loss_cls"].backward()
    del trace
    branch = [model.backbone.get_submodule(f"{closed}.{conv}") for conv in ("conv1", "conv2")]
    assert all(parameter.grad is None for conv in branch for parameter in conv.parameters())
    assert torch.equal(statistics, model.backbone.get_submodule(closed).conv1.norm.running_mean)
    assert all(p.grad.abs().sum() > 0 for p in model.backbone.get_submodule(opened).conv1.parameters())
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_the_plan_names_the_stages_and_each_has_its_schedule(tmp_path):
    opts = ["OUTPUT_DIR", str(tmp_path), "MODEL.POLICY.PLAN", "['sp','fixed']", "SOLVER.FIXED_STAGE.MAX_ITER", "7",
            "SOLVER.SECOND_STAGE.MAX_ITER", "5", "SOLVER.MAX_ITER", "9"]  # fmt: skip
    stages = plan("SkipNet/digits.yaml", opts)
    assert [stage.name for stage in stages] == ["sp", FIXED] and stages[1].parents == stages[:1]
    assert previous_stages(stages[1].cfg) == ("hrl", "sp")
    other = build_cfg("SkipNet/digits.yaml", ["MODEL.POLICY.STAGE", FIXED, *opts[4:8]])
    assert other.SOLVER.MAX_ITER == 7
    longer = plan("SkipNet/digits.yaml", [*opts, "SOLVER.FIXED_STAGE.BASE_LR", "0.003"])
    assert longer[0].fingerprint() == stages[0].fingerprint() != longer[1].fingerprint()
    assert [stage.name for stage in plan("SkipNet/digits.yaml", opts[:2])] == ["sp", "hrl"]


def test_a_plan_that_cannot_be_says_which_stages_there_are(tmp_path):
    for wrong in ("['fixed','sp']", "['sp','joint']", "['sp','sp']"):
        with pytest.raises(ValueError, match=r"MODEL.POLICY.PLAN is .*skipnet_rnn in their order \(sp, hrl, fixed\)"):
            plan("SkipNet/digits.yaml", ["MODEL.POLICY.PLAN", wrong])
    with pytest.raises(ValueError, match="it has none: leave it empty"):
        build_cfg("SkipNet/digits.yaml", ["MODEL.POLICY.NAME", "all_open", "MODEL.POLICY.PLAN", "['sp']"])
    with pytest.raises(StageError, match="in one stage"):
        plan("SkipNet/digits.yaml", ["MODEL.POLICY.NAME", "convnet_aig"])


@pytest.mark.parametrize(
    ("own", "found"),
    [
        ({}, (0.5, 0.5, 0.5)),
        ({"WEIGHT_DECAY_NORM": 0.0, "WEIGHT_DECAY_BIAS": 0.2}, (0.5, 0.0, 0.2)),  # as given on the command line
        ({"WEIGHT_DECAY": 0.3}, (0.3, 0.1, 0.1)),
    ],
)
def test_the_decay_of_a_stage_is_that_of_norms_and_biases_too_where_it_was_the_same(own, found, tmp_path):
    base = tmp_path / "base.yaml"
    decays = "WEIGHT_DECAY: 0.1, WEIGHT_DECAY_NORM: 0.1, WEIGHT_DECAY_BIAS: 0.1"
    stage = "MODEL: {POLICY: {NAME: skipnet_rnn, STAGE: hrl}}"
    base.write_text(f"{stage}\nSOLVER: {{{decays}, SECOND_STAGE: {{WEIGHT_DECAY: 0.5}}}}\nVERSION: 2\n")
    solver = build_cfg(str(base), [part for key, value in own.items() for part in (f"SOLVER.{key}", str(value))]).SOLVER
    assert (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM, solver.WEIGHT_DECAY_BIAS) == found


def test_norms_that_do_not_decay_stay_without():
    keys = ["MODEL.POLICY.NAME", "skipnet_rnn", "MODEL.POLICY.STAGE", "hrl", "SOLVER.SECOND_STAGE.WEIGHT_DECAY", "0.5"]
    for decay in ("0.1", "0.0"):
        own = [] if decay == "0.1" else ["SOLVER.WEIGHT_DECAY", decay]
        solver = build_cfg("", [*own, *keys]).SOLVER
        assert solver.WEIGHT_DECAY == 0.5 and solver.WEIGHT_DECAY_NORM == 0 and solver.WEIGHT_DECAY_BIAS is None
