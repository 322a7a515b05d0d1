"""PMN in every task: it trains a step and evaluates with a route, or says what it needs."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from combinations import build, check, refuses
from tiny_tasks import TASKS, batch

from dyn_d2.config.derive import build_cfg
from dyn_d2.engine.trainer import DynTrainer

from detectron2.utils.events import EventStorage


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("stage", ["pretrain", "joint"])
def test_only_a_classifier_predicts_from_modules(task, stage):
    model = build(task, "pmn", "block", stage)
    if task != "classifier":
        refuses(model, stage)
        return
    check(model, "scores", frozen=False)


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


def test_everything_decays_alike_in_stage_joint_on_cifar():
    cfg = build_cfg("PMN/cifar.yaml", ["MODEL.POLICY.STAGE", "joint", "MODEL.DEVICE", "cpu"])
    optimizer = DynTrainer.build_optimizer(cfg, DynTrainer.build_model(cfg))
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0005}


def test_the_page_freezes_the_network_and_not_the_policy_that_lies_in_it():
    page = (Path(__file__).resolve().parents[3] / "docs" / "pmn.md").read_text().replace("\\\n", " ")
    first, second = (shlex.split(line)[4:] for line in re.findall(r"^ {4}(dyn-d2 train .*)$", page, flags=re.M))
    at = second.index("MODEL.WEIGHTS")
    assert second[at + 1] == f"{first[-1]}/model_final.pth"
    data = ["DATASETS.TRAIN", "('cifar10_train',)", "DATASETS.TEST", "()"]  # which needs no file
    models = [DynTrainer.build_model(build_cfg("PMN/cifar.yaml", [*part, *data])) for part in (first, second)]
    assert all(parameter.requires_grad for parameter in models[0].parameters())
    trained = {name for name, parameter in models[1].named_parameters() if parameter.requires_grad}
    assert trained and all(re.match(r"backbone\.policy|module_classifier|linear", name) for name in trained)
    assert {name for name, _ in models[1].named_parameters() if ".policy." in name} < trained
