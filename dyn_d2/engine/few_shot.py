"""The two-stage procedure as one command: base -> surgery -> (novel -> surgery ->) fine-tuning, with evaluation.

Each stage trains in a process of its own in its own folder below OUTPUT_DIR and leaves ``done.json`` there, which holds
a hash of all that its result depends on. A stage whose hash is unchanged is skipped, one that was killed goes on from
its last checkpoint; base models are shared by all shots, seeds and methods that allow it.
"""

import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dyn_d2.checkpoint.surgery import Source, operate, save
from dyn_d2.utils.atomic import write_json
from dyn_d2.utils.errors import UserError

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from .setup import ONE_STAGE, build_cfg, flatten, read_cfg

logger = logging.getLogger(__name__)

TRAIN_NET = Path(__file__).resolve().parents[2] / "tools" / "train_net.py"
DONE = "done.json"
FINAL = "model_final.pth"

# Keys that do not change what a stage learns.
_NEUTRAL = (
    "OUTPUT_DIR",
    "MODEL.WEIGHTS",
    "MODEL.DEVICE",
    "DATALOADER.NUM_WORKERS",
    "TEST",
    "VIS_PERIOD",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.PREFLIGHT",
    "SOLVER.FIND_UNUSED_PARAMETERS",
)
# Keys of later stages, which a stage on all data does not depend on.
_LATER = (
    "FEW_SHOT.SHOTS",
    "FEW_SHOT.SHOTS_UNIT",
    "FEW_SHOT.SEED",
    "FEW_SHOT.INIT",
    "FEW_SHOT.METHOD",
    "FEW_SHOT.SHOTS_DIR",
    "FEW_SHOT.GROUP_BY_IMAGE",
    "FEW_SHOT.PROTOCOL",
    "FEW_SHOT.FINETUNE",
    "FEW_SHOT.NOVEL",
)


class StageError(UserError):
    """A stage failed, or its folder holds the result of another config."""


@dataclass
class Stage:
    """One training run of the procedure.

    Attributes:
        name: value of FEW_SHOT.STAGE.
        folder: where it trains.
        cfg: its config.
        parents: stages whose weights it starts from.
    """

    name: str
    folder: Path
    cfg: CfgNode
    parents: list["Stage"] = field(default_factory=list)

    @property
    def weights(self) -> Path:
        """The model that the stage leaves."""
        return self.folder / FINAL

    def fingerprint(self) -> str:
        """Hash of everything that the result depends on, the stages before included."""
        skipped = _NEUTRAL + (_LATER if self.name in ("base", "joint") else ())
        keys = {
            key: value
            for key, value in flatten(yaml.safe_load(self.cfg.dump())).items()
            if not any(key == name or key.startswith(name + ".") for name in skipped)
        }
        start = [parent.fingerprint() for parent in self.parents] or self.cfg.MODEL.WEIGHTS
        text = json.dumps([keys, start], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def finished(self) -> bool:
        """Whether the folder holds this stage's result.

        Raises:
            StageError: it holds another one's.
        """
        if not (self.folder / DONE).is_file():
            return False
        done = json.loads((self.folder / DONE).read_text(encoding="utf-8"))
        if done["fingerprint"] != self.fingerprint():
            raise StageError(
                f"{self.folder} holds stage {self.name} of another config (compare its config.yaml): choose another "
                "OUTPUT_DIR, or remove that folder."
            )
        return self.weights.is_file()


def stage_folder(cfg: CfgNode, stage: str) -> str:
    """Name of a stage's folder, e.g. ``base_split1`` or ``tfa_cos_split1_5shot_seed0``."""
    few = cfg.FEW_SHOT
    split = f"split{few.SPLIT}"
    if stage in ("base", "joint"):
        cosine = "_cosine" if cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER == "cosine" else ""
        return f"{stage}{cosine}_{split}"
    shots = f"{few.SHOTS}shot" + ("_images" if few.SHOTS_UNIT == "image" else "") + f"_seed{few.SEED}"
    if stage == "joint_shots":
        return f"{stage}_{split}_{shots}"
    if stage == "finetune":
        kind = few.METHOD or "finetune"
        suffix = ("_novelinit" if few.INIT == "novel" else "") + ("_fsod" if few.PROTOCOL == "fsod" else "")
        return f"{kind}_{split}_{shots}{suffix}"
    return "_".join(part for part in (stage, few.METHOD, split, shots) if part)


def plan(config_file: str, opts: Iterable[str]) -> list[Stage]:
    """The stages, in order, that lead to the final model of a config.

    FEW_SHOT.METHOD "joint" (all data of all classes) and "joint_shots" (all data of the base classes, K shots of the
    novel ones) have a single one.

    Raises:
        ValueError: FEW_SHOT.BENCHMARK is not set, or FEW_SHOT.INIT is unknown.
    """
    opts = list(opts)

    def stage(name: str, parents: list[Stage]) -> Stage:
        cfg = build_cfg(config_file, [*opts, "FEW_SHOT.STAGE", name])
        if not cfg.FEW_SHOT.BENCHMARK:
            raise ValueError("FEW_SHOT.BENCHMARK is empty: name a benchmark, or 'custom' with FEW_SHOT.CUSTOM keys.")
        if cfg.FEW_SHOT.INIT not in ("random", "novel"):
            raise ValueError(f"FEW_SHOT.INIT is {cfg.FEW_SHOT.INIT!r}: use 'random' or 'novel'.")
        return Stage(name, Path(cfg.OUTPUT_DIR) / stage_folder(cfg, name), cfg, parents)

    method = read_cfg(config_file, opts).FEW_SHOT.METHOD
    if method in ONE_STAGE:
        return [stage(method, [])]
    base = stage("base", [])
    novel = [stage("novel", [base])] if base.cfg.FEW_SHOT.INIT == "novel" else []
    return [base, *novel, stage("finetune", [base, *novel])]


def initial_weights(stage: Stage) -> Path:
    """Do the surgery that ``stage`` starts from and return the file; the seed is the stage's SEED and FEW_SHOT.SEED."""
    cfg = stage.cfg
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    base, *novel = (Source.read(str(parent.weights)) for parent in stage.parents)
    checkpoint = operate(
        base,
        metadata.thing_classes,
        metadata.novel_classes,
        novel=novel[0] if novel else None,
        classifier=cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER,
        seed=cfg.FEW_SHOT.SEED,
    )
    path = stage.folder / "initial.pth"
    save(checkpoint, str(path))
    return path


def run_process(command: list[str]) -> int:
    """Run a command with this process's output and return its exit status."""
    return subprocess.run(command, check=False).returncode


def run_stage(stage: Stage, config_file: str, opts: Iterable[str], launcher: Iterable[str] = ()) -> None:
    """Train ``stage`` in a process of its own, unless its result is there; go on where it was killed.

    Args:
        stage: from ``plan``.
        config_file, opts: those that the plan was made from.
        launcher: options of train_net.py such as ``--num-gpus 2``.

    Raises:
        StageError: the process failed, or the folder holds another config's result.
    """
    if stage.finished():
        logger.info(f"stage {stage.name}: done already, {stage.weights}")
        return
    resume = (stage.folder / "last_checkpoint").is_file()
    derived: list[Any] = ["FEW_SHOT.STAGE", stage.name, "OUTPUT_DIR", stage.folder]
    if stage.parents:
        derived += ["MODEL.WEIGHTS", stage.folder / "initial.pth" if resume else initial_weights(stage)]
    command = [sys.executable, str(TRAIN_NET), *launcher, *(["--resume"] if resume else [])]
    command += ["--config-file", config_file] if config_file else []
    command += [*opts, *map(str, derived)]
    logger.info(f"stage {stage.name}: {'going on' if resume else 'starting'} in {stage.folder}\n  {' '.join(command)}")
    if not TRAIN_NET.is_file():
        raise StageError(
            f"{TRAIN_NET} does not exist: training in stages needs a checkout of dyn_d2 (pip install -e FOLDER), not "
            "the package alone."
        )
    status = run_process(command)
    if status != 0:
        raise StageError(
            f"stage {stage.name} ended with status {status}; its messages are above and in {stage.folder}/log.txt. "
            "The same command goes on from the last checkpoint."
        )
    write_json(stage.folder / DONE, {"stage": stage.name, "fingerprint": stage.fingerprint(), "weights": FINAL})


def train_few_shot(config_file: str, opts: Iterable[str], launcher: Iterable[str] = ()) -> Stage:
    """Run all stages of ``plan`` and return the last one.

    Raises:
        StageError: from ``run_stage``.
    """
    opts = list(opts)
    stages = plan(config_file, opts)
    for number, stage in enumerate(stages, 1):
        logger.info(f"stage {number} of {len(stages)}: {stage.name}")
        run_stage(stage, config_file, opts, launcher)
    return stages[-1]
