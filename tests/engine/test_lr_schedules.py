"""The poly and the halving schedule, and the rate of the backbone."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from tiny_tasks import task_opts

from dyn_d2.config.derive import build_cfg
from dyn_d2.config.read import read_cfg
from dyn_d2.engine.lr_schedules import warn_of_long_warm_up
from dyn_d2.engine.param_groups import scale_backbone_rate
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.gating.meta_arch.dynamic import find_policy


def _cfg(**more):
    cfg = read_cfg("", task_opts("semantic_fpn", SOLVER__LR_SCHEDULER_NAME="WarmupPolyLR", **more))
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.BASE_LR = 10, 0, 0.5
    return cfg


@pytest.mark.parametrize(("power", "ending"), [(0.9, 0.0), (2.0, 0.3)])
def test_poly_is_a_power_of_what_is_left(power, ending):
    cfg = _cfg(SOLVER__POLY_LR_POWER=power, SOLVER__POLY_LR_CONSTANT_ENDING=ending)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = DynTrainer.build_lr_scheduler(cfg, optimizer)
    for iteration in range(10):
        expected = 0.5 * max((1 - iteration / 10) ** power, ending)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        optimizer.step(), schedule.step()


def test_the_rate_is_halved_again_and_again():
    cfg = _cfg(SOLVER__HALVING_ITERS=4)
    cfg.SOLVER.LR_SCHEDULER_NAME = "HalvingLR"
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = DynTrainer.build_lr_scheduler(cfg, optimizer)
    for iteration in range(10):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 2 ** (-iteration / 4))
        optimizer.step(), schedule.step()
    cfg.SOLVER.HALVING_ITERS = 0
    with pytest.raises(ValueError, match="HALVING_ITERS is 0"):
        DynTrainer.build_lr_scheduler(cfg, optimizer)


def test_warm_up_and_wrong_power():
    cfg = _cfg()
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR = 5, 0.1
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    DynTrainer.build_lr_scheduler(cfg, optimizer)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    with pytest.raises(ValueError, match="POLY_LR_POWER is -1"):
        DynTrainer.build_lr_scheduler(_cfg(SOLVER__POLY_LR_POWER=-1.0), optimizer)


@pytest.mark.parametrize(("warm_up", "share"), [(5, None), (6, "60%"), (20, "100%")])
def test_a_warm_up_of_most_of_the_training_is_said(warm_up, share, caplog):
    cfg = _cfg()
    cfg.SOLVER.WARMUP_ITERS = warm_up
    warn_of_long_warm_up(cfg)
    assert [f"is {share} of the 10 iterations" in text for text in caplog.messages] == [True] * (share is not None)


def test_backbone_has_its_own_rate_and_gates_another():
    cfg = _cfg(MODEL__POLICY__NAME="convnet_aig", SOLVER__BACKBONE_LR_FACTOR=0.01, SOLVER__GATE_LR_FACTOR=2.0)
    model = DynTrainer.build_model(cfg)
    optimizer = DynTrainer.build_optimizer(cfg, model)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    gates = set(find_policy(model.backbone).parameters())
    for name, parameter in model.named_parameters():
        factor = 2.0 if parameter in gates else 0.01 if name.startswith("backbone") else 1.0
        assert rate[id(parameter)] == pytest.approx(0.5 * factor), name
    with pytest.raises(ValueError, match="BACKBONE_LR_FACTOR is -1"):
        scale_backbone_rate(optimizer, model.backbone, -1.0)


@pytest.mark.parametrize(("stage", "first", "then"), [("sp", 0.01, 0.1), ("hrl", 0.0001, 0.0001)])
def test_resnet_110_warms_up_as_published_by_the_keys_of_its_page(stage, first, then):
    page = Path(__file__).resolve().parents[2] / "docs" / "skipnet.md"
    keys = re.search(r"^\| ResNet-110.*\| `(.*)` \|$", page.read_text(), flags=re.M)
    cfg = build_cfg("SkipNet/cifar.yaml", ["MODEL.POLICY.STAGE", stage, *shlex.split(keys[1])])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    schedule = DynTrainer.build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(402):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step(), schedule.step()
    assert cfg.MODEL.RESNETS.DEPTH == 110 and rates == pytest.approx([first] * 400 + [then] * 2)
