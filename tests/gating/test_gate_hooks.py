"""Parameter groups of gates, and the warning about gates that collapse."""

import logging
from types import SimpleNamespace

import pytest
import torch
from tiny_tasks import task_opts
from torch import nn

from dyn_d2.config.read import read_cfg
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.gating.hooks import GateCollapse, separate_gates
from dyn_d2.gating.meta_arch.dynamic import find_policy

from detectron2.utils.events import EventStorage


def run(hook: GateCollapse, steps: list[dict[str, float]], start: int = 0) -> None:
    with EventStorage(start) as storage:
        hook.trainer = SimpleNamespace(storage=storage, iter=start)
        for rates in steps:
            for name, rate in rates.items():
                storage.put_scalar(f"gate_rate/{name}", rate)
            hook.after_step()
            storage.step()
            hook.trainer.iter += 1


def test_collapsed_units_are_named_once_until_they_recover(caplog) -> None:
    caplog.set_level(logging.INFO, "dyn_d2")
    hook = GateCollapse(window=4)
    fine, dead, stuck = {"a": 0.5, "b": 0.03}, {"a": 0.5, "b": 0.0}, {"a": 0.99, "b": 0.0}
    run(hook, [fine] * 4 + [dead] * 3)
    assert not caplog.records
    run(hook, [dead] * 5, 7)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "1 of 2 gated units" in record.message and "b 0.0%" in record.message
    assert "a " not in record.message.partition(": ")[2].partition("): ")[2]
    run(hook, [stuck] * 4, 12)
    assert len(caplog.records) == 2 and caplog.records[1].message.endswith("a 99.0%.")
    run(hook, [fine] * 4, 16)
    assert [r.levelname for r in caplog.records[2:]] == ["INFO", "INFO"] and "b has recovered" in caplog.text
    run(hook, [dead] * 4, 20)
    assert caplog.records[-1].levelname == "WARNING"


def test_gates_have_groups_of_their_own() -> None:
    keys = {"MODEL__POLICY__NAME": "skipnet_ffgate2", "SOLVER__WEIGHT_DECAY_NORM": 0.5}
    for factor, decay in ((1.0, -1.0), (10.0, 0.25)):
        cfg = read_cfg(
            "", task_opts("classifier", **keys, SOLVER__GATE_LR_FACTOR=factor, SOLVER__GATE_WEIGHT_DECAY=decay)
        )
        model = DynTrainer.build_model(cfg)
        optimizer = DynTrainer.build_optimizer(cfg, model)
        gates = {id(parameter) for parameter in find_policy(model.backbone).parameters()}
        seen = 0
        for group in optimizer.param_groups:
            of_policy = {id(parameter) in gates for parameter in group["params"]}
            seen += len(group["params"])
            assert len(of_policy) == 1
            assert group["lr"] == pytest.approx(cfg.SOLVER.BASE_LR * (factor if of_policy == {True} else 1))
            plain = (cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM)
            assert (
                group["weight_decay"] == decay if of_policy == {True} and decay >= 0 else group["weight_decay"] in plain
            )
        assert seen == len([p for p in model.parameters() if p.requires_grad])


def test_an_optimizer_of_gates_alone() -> None:
    policy = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    separate_gates(optimizer, policy, 3.0, 0.0)
    assert len(optimizer.param_groups) == 1 and optimizer.param_groups[0]["lr"] == pytest.approx(0.3)
    with pytest.raises(ValueError, match="GATE_LR_FACTOR is -1"):
        separate_gates(optimizer, policy, -1)
