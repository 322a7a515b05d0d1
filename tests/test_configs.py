"""Every yaml of configs/ builds its model, takes a training step in each of its stages and evaluates."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from config_kinds import KINDS, Kind, of_methods

from dyn_d2.config.applied import note_loader
from dyn_d2.config.read import read_cfg
from dyn_d2.engine.schedules import stage_schedule
from dyn_d2.engine.trainer import DynTrainer

from detectron2.utils.events import EventStorage

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {path: read_cfg(str(path)) for path in sorted((ROOT / "configs").rglob("*.yaml"))}
ALL_KINDS = (*KINDS, *(kind for module in of_methods() for kind in getattr(module, "KINDS", ())))
SMALL = [part for module in of_methods() for part in getattr(module, "SMALL", ())]


def _kinds_of(path: Path) -> list[Kind]:
    return [kind for kind in ALL_KINDS if re.fullmatch(kind.architectures, CONFIGS[path].MODEL.META_ARCHITECTURE)]


def _cases() -> list:
    return [
        pytest.param(path, kind, variant, opts, marks=kind.marks, id="-".join(filter(None, (_name(path), variant))))
        for path in CONFIGS
        for kind in _kinds_of(path)
        for variant, opts in kind.variants(CONFIGS[path]).items()
    ]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT / "configs"))


def test_every_yaml_is_tried() -> None:
    assert CONFIGS and all(len(_kinds_of(path)) == 1 for path in CONFIGS)


@pytest.mark.parametrize(("path", "kind", "variant", "opts"), _cases())
def test_trains_a_step(path: Path, kind: Kind, variant: str, opts: list[Any]) -> None:
    cfg = read_cfg(str(path), [*SMALL, *kind.small, *opts])
    kind.prepare(cfg, variant)
    cfg.freeze()
    model = DynTrainer.build_model(cfg)
    optimizer = DynTrainer.build_optimizer(cfg, model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    batch = kind.inputs(cfg, True)
    note_loader(model, cfg)  # as one would that made this batch
    with EventStorage():
        losses = model(batch)
    expected = kind.losses(cfg)
    assert expected <= losses.keys() if kind.more_losses else expected == losses.keys()
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
    assert kind.learns in changed if kind.learns else changed
    model.eval()
    kind.ready(model, batch)
    with torch.no_grad():
        outputs = model(kind.inputs(cfg, False))
    assert kind.answers(cfg, outputs)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "TFA").glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("stage", ["base", "novel", "finetune"])
def test_every_stage_has_a_schedule(path, stage):
    cfg = read_cfg(str(path), ["FEW_SHOT.STAGE", stage])
    if path.stem == "voc" and stage == "novel":
        with pytest.raises(ValueError, match="novel"):  # nothing is published; docs/tfa.md says what to set
            stage_schedule(cfg)
        return
    schedule = {**cfg.SOLVER, **stage_schedule(cfg)}
    assert 0 < schedule["BASE_LR"] <= 0.1 and 0 < schedule["MAX_ITER"]
