"""The trainings of a table about described classes: methods by name, splits, seeds, and folds to choose settings."""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dyn_d2.checkpoint.model import model_of
from dyn_d2.config.derive import build_cfg
from dyn_d2.engine.inputs import inputs_of
from dyn_d2.engine.job_queue import quiet
from dyn_d2.engine.stages import DONE, Stage
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.utils.atomic import atomic_write, write_json

from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng

from .data import DescribedSet, described_set

logger = logging.getLogger(__name__)

CLOSED = ("eszsl", "eszsl_balanced")  # in closed form: nothing is trained or drawn
ESZSL, BALANCED = CLOSED
METHODS: dict[str, tuple[str, ...]] = {
    "tafe_net": (),
    "no_embedding_loss": ("MODEL.TAFE_NET.EMBEDDING_WEIGHT", "0.0"),
    ESZSL: (),
    BALANCED: (),
}
TITLES = {
    "tafe_net": "TAFE-Net",
    "no_embedding_loss": "TAFE-Net without embedding loss",
    ESZSL: "ESZSL (Romera-Paredes and Torr 2015)",
    BALANCED: "ESZSL, classes weighted alike",
}
IMAGES = 256  # in one pass


@dataclass(frozen=True)
class Split:
    """A division into seen and unseen classes: its name, and KEY VALUE pairs that make it."""

    name: str
    opts: tuple[str, ...]


def splits_of(sets: Sequence[str], unseen: Sequence[Sequence[str]]) -> list[Split]:
    """Registered data sets, and lists of unseen classes of one's own data; none of both is the config as it is."""
    found = [Split(name, _of_set(name)) for name in sets]
    for number, classes in enumerate(unseen, 1):
        found.append(Split(f"unseen{number}", ("ZERO_SHOT.CUSTOM.UNSEEN", repr(list(classes)))))
    return found or [Split("as_configured", ())]


def _of_set(name: str) -> tuple[str, ...]:
    return ("DATASETS.TRAIN", repr((f"{name}_train",)), "DATASETS.TEST", repr((f"{name}_test",)))


@dataclass(frozen=True)
class Scores:
    """What a model says of the test images.

    Attributes:
        values: (N, C), -inf where a class is no candidate.
        data: the images and their labels.
    """

    values: np.ndarray
    data: DescribedSet

    @property
    def labels(self) -> np.ndarray:
        return self.data.parts["test"].labels


@dataclass
class DescribedStage(Stage):
    """A training with keys of its own, which starts from random weights."""

    given: list[str] = field(default_factory=list)

    def opts(self) -> list[str]:
        return self.given

    def initial_weights(self, resume: bool) -> Path | None:
        return None


@dataclass(frozen=True)
class Planner:
    """Makes the config of a training; folders lie in OUTPUT_DIR of the config.

    Attributes:
        config_file, opts: of the table.
    """

    config_file: str
    opts: tuple[str, ...]

    def cfg(self, split: Split, more: Iterable[str] = ()) -> CfgNode:
        """The config of a split."""
        return _frozen_cfg(self.config_file, (*self.opts, *split.opts, *more))

    def stage(self, method: str, split: Split, seed: int, more: Sequence[str] = (), fold: int = 0) -> DescribedStage:
        """The training of a method, with ``more`` keys that were chosen, on a fold where ``fold`` > 0."""
        given = [*split.opts, *METHODS[method], *more, "SEED", str(seed)]
        given += ["ZERO_SHOT.CUSTOM.FOLD", str(fold)] if fold else []
        cfg = _frozen_cfg(self.config_file, (*self.opts, *given))
        name = f"{method}_{split.name}_seed{seed}"
        if fold:
            name = f"folds/{method}_{split.name}{_short(more)}_fold{fold}_seed{seed}"
        return DescribedStage(name, Path(cfg.OUTPUT_DIR) / name, cfg, [], given)


def plan_one(
    config_file: str, opts: Iterable[str], method: str, split: Split, seed: int, more: Sequence[str] = ()
) -> list[Stage]:
    """The one training of a cell of the table, see ``Planner.stage``."""
    return [Planner(config_file, tuple(opts)).stage(method, split, seed, more)]


@lru_cache(maxsize=256)  # a table asks for each of them several times
def _frozen_cfg(config_file: str, opts: tuple[str, ...]) -> CfgNode:
    with quiet():
        cfg = build_cfg(config_file, opts)
    cfg.freeze()
    return cfg


def _short(more: Sequence[str]) -> str:
    return f"_{hashlib.sha256(repr(list(more)).encode()).hexdigest()[:6]}" if more else ""


def train_here(stage: Stage) -> None:
    """Train in this process, for trainings of a few seconds, unless the result is there; as ``run_stage`` otherwise."""
    if stage.finished():
        return
    cfg = stage.cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(stage.folder)
    cfg.freeze()
    inputs = inputs_of(cfg, (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    with atomic_write(stage.folder / "config.yaml") as file:
        file.write(cfg.dump())
    with quiet():
        seed_all_rng(cfg.SEED)
        trainer = DynTrainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
    done = {"stage": stage.name, "fingerprint": stage.fingerprint(), "weights": stage.weights.name, "inputs": inputs}
    write_json(stage.folder / DONE, done)


def scores_of(stage: Stage) -> Scores:
    """What the model of a finished training says of the first test set."""
    with quiet():
        model, _ = model_of(stage.cfg, str(stage.weights))
    return scores_from(model, stage.cfg.DATASETS.TEST[0])


def scores_from(model: nn.Module, name: str) -> Scores:
    """What a model in evaluation mode says of a test set."""
    data = described_set(name)
    features, rows = data.parts["test"].features, []
    with torch.no_grad():
        for start in range(0, len(features), IMAGES):
            chunk = torch.from_numpy(features[start : start + IMAGES])
            outputs = model([{"feature": feature, "dataset": name} for feature in chunk])
            rows += [output["scores"].float().cpu().numpy() for output in outputs]
    return Scores(np.stack(rows).astype(np.float64), data)
