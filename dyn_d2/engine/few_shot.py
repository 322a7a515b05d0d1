"""The two-stage procedure as one command: base -> surgery -> (novel -> surgery ->) fine-tuning, with evaluation.

The stages run as engine/stages.py has it; base models are shared by all shots, seeds and methods that allow it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dyn_d2.checkpoint.surgery import Source, operate, save
from dyn_d2.config.derive import build_cfg
from dyn_d2.config.read import read_cfg
from dyn_d2.data.few_shot.register import find_shots, load_sources
from dyn_d2.data.few_shot.sampling import UNITS
from dyn_d2.data.few_shot.stages import BASE, FINETUNE, JOINT_SHOTS, NOVEL, ON_ALL_DATA
from dyn_d2.data.few_shot.task import FewShotTask
from dyn_d2.data.fingerprint import weights_fingerprint
from dyn_d2.method import FewShotMethod, few_shot_methods, methods
from dyn_d2.utils.atomic import write_json
from dyn_d2.utils.own_files import read_json_of

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from .feature_cache import cache_folder
from .inputs import ALLOW
from .stages import Stage, StageError

# Keys of later stages, which a stage on all data does not depend on.
_LATER = (
    "FEW_SHOT.SHOTS",
    "FEW_SHOT.SHOTS_UNIT",
    "FEW_SHOT.MAX_OBJECTS",
    "FEW_SHOT.SEED",
    "FEW_SHOT.INIT",
    "FEW_SHOT.METHOD",
    "FEW_SHOT.SHOTS_DIR",
    "FEW_SHOT.GROUP_BY_IMAGE",
    "FEW_SHOT.PROTOCOL",
    "FEW_SHOT.FINETUNE",
    "FEW_SHOT.NOVEL",
    "FEW_SHOT.FULL",
    "FEW_SHOT.ITERS_PER_SHOT",
)
# The same of the novel stage, which methods on one base model share.
_AFTER_NOVEL = (
    "FEW_SHOT.METHOD",
    "FEW_SHOT.PROTOCOL",
    "FEW_SHOT.FINETUNE",
    "FEW_SHOT.FULL",
    "FEW_SHOT.ITERS_PER_SHOT",
)


_NO_METHOD = FewShotMethod("", 0)


class FewShotStage(Stage):
    """A value of FEW_SHOT.STAGE."""

    KEY = "FEW_SHOT.STAGE"

    def opts(self) -> list[str]:
        """All stages below one OUTPUT_DIR share their cached features."""
        few = self.cfg.FEW_SHOT
        return [*super().opts(), "FEW_SHOT.CACHE_DIR", few.CACHE_DIR or cache_folder(self.cfg)]

    def check_data(self) -> None:
        """Draws the K shots once, so that a class with too few objects is told before the base model is trained."""
        task = FewShotTask.from_config(self.cfg)
        if task.shot_classes:
            find_shots(task, load_sources(task.benchmark))

    def later_keys(self) -> tuple[str, ...]:
        if self.name == NOVEL:
            return _AFTER_NOVEL
        if self.name not in ON_ALL_DATA:
            return ()
        return (*_LATER, *(key for method in methods() for key in method.later_few_shot_keys))

    def initial_weights(self, resume: bool) -> Path | None:
        """The result of the surgery on the parents' weights; its seed is FEW_SHOT.SEED. Detectors
        without rows of classes start from the weights as they are."""
        if self.parents and any(method.whole_base_is_start(self.cfg) for method in methods()):
            return self.parents[0].weights
        path, record = self.folder / "initial.pth", self.folder / "initial.json"
        if not self.parents:
            return None
        made_from = {parent.name: weights_fingerprint(str(parent.weights)) for parent in self.parents}
        if resume and path.is_file():
            began = read_json_of(record, "record of initial.pth") if record.is_file() else made_from
            if began != made_from and not self.cfg.SOLVER.ALLOW_CHANGED_INPUTS:
                raise StageError(
                    f"{self.folder} was begun from other weights than those of stage {self.parents[0].name} now: "
                    f"remove it to start anew, or give {ALLOW} True to go on."
                )
            return path
        base, *novel = (Source.read(str(parent.weights)) for parent in self.parents)
        checkpoint = starting_checkpoint(self.cfg, base, novel[0] if novel else None)
        save(checkpoint, str(path))
        write_json(record, made_from)
        return path


def starting_checkpoint(
    cfg: CfgNode, base: Source, novel: Source | None = None, *, seed: int | None = None, all_new: bool = False
) -> dict[str, Any]:
    """The checkpoint that the few-shot stage of ``cfg`` starts from.

    Args:
        base: the base model.
        novel: the model of the novel stage; None for random rows.
        seed: of these; None for FEW_SHOT.SEED.
        all_new: the base model comes from another data set (COCO to PASCAL) and knows none of the stage's classes.

    Raises:
        CheckpointError: from ``operate``.
    """
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    checkpoint = operate(
        base,
        metadata.thing_classes,
        metadata.thing_classes if all_new else metadata.novel_classes,
        novel=novel,
        classifier=cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER,
        seed=cfg.FEW_SHOT.SEED if seed is None else seed,
    )
    for method in methods():
        method.finish_surgery(cfg, checkpoint, base)
    return checkpoint


def stage_folder(cfg: CfgNode, stage: str) -> str:
    """Name of a stage's folder, e.g. ``base_split1`` or ``ft_full_split1_5shot_seed0``; what methods share does not
    carry the method's name, but the detector's where it is another one than the config's."""
    few = cfg.FEW_SHOT
    method = few_shot_methods().get(few.METHOD, _NO_METHOD)
    split = f"split{few.SPLIT}"
    cosine = "_cosine" if cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER == "cosine" else ""
    shared = f"{stage}{'_' * bool(method.detector)}{method.detector.lower()}{cosine}_{split}"
    if stage in ON_ALL_DATA:
        return shared
    shots = f"{few.SHOTS}shot{UNITS.get(few.SHOTS_UNIT, '')}_seed{few.SEED}"
    if stage == JOINT_SHOTS:
        return f"{method.folder or stage}_{split}_{shots}"
    if stage == FINETUNE:
        kind = few.METHOD or FINETUNE
        suffix = ("_novelinit" if few.INIT == "novel" else "") + ("_fsod" if few.PROTOCOL == "fsod" else "")
        return f"{kind}_{split}_{shots}{suffix}"
    return f"{shared}_{shots}"


def plan(config_file: str, opts: Iterable[str]) -> list[Stage]:
    """The stages, in order, that lead to the final model of a config.

    Some methods have a single one, such as "joint" (all data of all classes) and "joint_shots" (all data of the base
    classes, K shots of the novel ones).

    Raises:
        ValueError: FEW_SHOT.BENCHMARK is not set, FEW_SHOT.INIT is unknown, or a stage is given.
    """
    opts = list(opts)
    given = dict(zip(opts[::2], opts[1::2], strict=False))
    if FewShotStage.KEY in given:
        raise ValueError(
            f"{FewShotStage.KEY} is given as {given[FewShotStage.KEY]!r}, but all stages of FEW_SHOT.METHOD are "
            "planned here: leave it out, or train that stage alone with dyn-d2 train."
        )

    def stage(name: str, parents: list[Stage]) -> Stage:
        cfg = build_cfg(config_file, [*opts, "FEW_SHOT.STAGE", name])
        if not cfg.FEW_SHOT.BENCHMARK:
            raise ValueError("FEW_SHOT.BENCHMARK is empty: name a benchmark, or 'custom' with FEW_SHOT.CUSTOM keys.")
        if cfg.FEW_SHOT.INIT not in ("random", "novel"):
            raise ValueError(f"FEW_SHOT.INIT is {cfg.FEW_SHOT.INIT!r}: use 'random' or 'novel'.")
        return FewShotStage(name, Path(cfg.OUTPUT_DIR) / stage_folder(cfg, name), cfg, parents)

    method = few_shot_methods().get(read_cfg(config_file, opts).FEW_SHOT.METHOD, _NO_METHOD)
    if method.stage:
        return [stage(method.stage, [])]
    base = stage(BASE, [])
    novel = [stage(NOVEL, [base])] if base.cfg.FEW_SHOT.INIT == "novel" else []
    return [base, *novel, stage(FINETUNE, [base, *novel])]
