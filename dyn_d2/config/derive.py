"""What follows from other keys: data sets from a few-shot task, schedules from stages, all of it from the batch."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from dyn_d2.data.few_shot.stages import BASE, FINETUNE, FINETUNING_STAGES, NOVEL
from dyn_d2.method import FewShotMethod, few_shot_methods, methods

from detectron2.config import CfgNode

from .ranges import check_ranges
from .read import read_cfg

logger = logging.getLogger(__name__)

FEATURES = ("backbone", "proposal_generator")  # of a detector, with the box head that is added per model

SetKey = Callable[[str, Any, str], None]
"""(key, value, why): sets a derived value, unless the user gave one on the command line."""


def derive(cfg: CfgNode, given: Iterable[str] = ()) -> None:
    """Set what follows from other keys: classifier and freezing from the few-shot method, the stage's schedule, the
    few-shot data sets, what is usual for a classification data set, what methods derive, the scaling to the batch.

    Args:
        cfg: changed in place.
        given: keys that the user set explicitly; they are left alone.

    Raises:
        ValueError: a key has a value that does not exist, or that cannot be used (``ranges.py``).
    """
    from dyn_d2.data.classification import apply_classification
    from dyn_d2.data.custom import apply_custom
    from dyn_d2.data.few_shot import apply_few_shot
    from dyn_d2.engine.schedules import given_for_stage, stage_schedule

    given = set(given)  # set_key looks into it
    check_ranges(cfg, related=False)

    def set_key(key: str, value: Any, why: str) -> None:
        set_unless_given(cfg, key, value, given, why)

    apply_custom(cfg, set_key)
    if cfg.FEW_SHOT.BENCHMARK:
        few_shot = apply_few_shot_method(cfg, given)
        full = few_shot is not None and few_shot.full
        # Beside a key of SOLVER, which is for all stages, that of the stage says more; neither is scaled to the batch.
        of_stage = given_for_stage(cfg, full, given)
        given -= {f"SOLVER.{key}" for key in of_stage}
        for key, value in stage_schedule(cfg, full, given).items():
            set_key(f"SOLVER.{key}", value, of_stage.get(key, "stage " + cfg.FEW_SHOT.STAGE))
        given |= {f"SOLVER.{key}" for key in of_stage}
        _refuse_sets(cfg, given)
    apply_few_shot(cfg)
    apply_classification(cfg, set_key)
    for method in methods():
        method.derive(cfg, given, set_key)
    scale_to_batch(cfg, given)
    # A step at the very end changes nothing, but fvcore's schedules refuse it; rounding makes such steps too.
    before_the_end = tuple(step for step in cfg.SOLVER.STEPS if step < cfg.SOLVER.MAX_ITER)
    if len(before_the_end) < len(cfg.SOLVER.STEPS):
        set_unless_given(cfg, "SOLVER.STEPS", before_the_end, set(), f"training ends at {cfg.SOLVER.MAX_ITER}")
    check_ranges(cfg)


def build_cfg(config_file: str = "", opts: Iterable[str] = ()) -> CfgNode:
    """``read_cfg`` and ``derive`` in one; values given in ``opts`` are never changed."""
    opts = list(opts)
    cfg = read_cfg(config_file, opts)
    derive(cfg, opts[::2])
    return cfg


def _refuse_sets(cfg: CfgNode, given: set[str]) -> None:
    """
    Raises:
        ValueError: data sets are given beside a few-shot task, which makes its own.
    """
    keys = {"DATASETS.TRAIN": "TRAIN_SETS", "DATASETS.TEST": "TEST_SETS"}
    for key in keys.keys() & given:
        raise ValueError(
            f"{key} is given, but FEW_SHOT.BENCHMARK {cfg.FEW_SHOT.BENCHMARK} makes its own data sets: give "
            f"FEW_SHOT.{keys[key]}, what they are made of."
        )


def set_unless_given(cfg: CfgNode, key: str, value: Any, given: set[str], why: str) -> None:
    """Set a derived value, unless the user gave one on the command line."""
    *path, name = key.split(".")
    node = cfg
    for part in path:
        node = node[part]
    if node[name] == value:
        return
    if key in given:
        logger.info(f"{key}: {node[name]} as given (not {value}, {why})")
    else:
        logger.info(f"{key}: {node[name]} -> {value} ({why})")
        node[name] = value


def apply_few_shot_method(cfg: CfgNode, given: set[str]) -> FewShotMethod | None:
    """FEW_SHOT.METHOD -> MODEL.META_ARCHITECTURE, MODEL.FREEZE and MODEL.ROI_BOX_HEAD.CLASSIFIER of the stage.

    Raises:
        ValueError: there is no such method.
    """
    few, known = cfg.FEW_SHOT, few_shot_methods()
    if few.METHOD == "":
        return None
    if few.METHOD not in known:
        raise ValueError(f"FEW_SHOT.METHOD is {few.METHOD!r}: use '' or one of {sorted(known)}.")
    method, why = known[few.METHOD], "method " + few.METHOD
    detector = method.tuned if method.tuned and few.STAGE == FINETUNE else method.detector
    if detector:
        set_unless_given(cfg, "MODEL.META_ARCHITECTURE", detector, given, why)
    if few.STAGE in FINETUNING_STAGES:
        # The novel stage's predictor is shared by all methods on the same base model, whose classifier it has; surgery
        # makes another of it.
        classifier = method.classifier if few.STAGE == FINETUNE else method.base_classifier.get(few.BENCHMARK, "linear")
        set_unless_given(cfg, "MODEL.ROI_BOX_HEAD.CLASSIFIER", classifier, given, why)
        # The novel stage trains a predictor for fixed features, also where the fine-tuning frees them again.
        parts = feature_parts(cfg) if method.frozen or few.STAGE == NOVEL else []
        set_unless_given(cfg, "MODEL.FREEZE", parts, given, why)
        if few.STAGE == FINETUNE and method.freeze_at is not None:
            frozen = min(cfg.MODEL.BACKBONE.FREEZE_AT, method.freeze_at)
            set_unless_given(cfg, "MODEL.BACKBONE.FREEZE_AT", frozen, given, why)
    elif few.STAGE == BASE and few.BENCHMARK in method.base_classifier:
        set_unless_given(cfg, "MODEL.ROI_BOX_HEAD.CLASSIFIER", method.base_classifier[few.BENCHMARK], given, why)
    return method


def feature_parts(cfg: CfgNode) -> list[str]:
    """The modules of the feature extractor, all but the predictors, of an FPN or C4 detector."""
    parts = [*FEATURES, "roi_heads.res5" if "Res5" in cfg.MODEL.ROI_HEADS.NAME else "roi_heads.box_head"]
    if cfg.MODEL.MASK_ON:
        parts += ["roi_heads.mask_head.mask_fcn*"] if cfg.MODEL.ROI_MASK_HEAD.NUM_CONV else []
        parts += ["roi_heads.mask_head.deconv"]
    for method in methods():
        parts += method.feature_parts(cfg)
    return parts


_COUNTS = ("STEPS", "MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD")  # of iterations


def at_batch(key: str, value: Any, scale: float) -> Any:
    """The value of a key of SOLVER, made for one batch, for a batch that is ``scale`` times as large; what says nothing
    of rate or iterations stays."""

    def scaled(count: int) -> int:
        return max(1, round(count / scale)) if count else 0  # what is none stays none, what is some stays some

    if key == "BASE_LR":
        return value * scale
    if key == "STEPS":
        return tuple(dict.fromkeys(map(scaled, value)))
    return scaled(value) if key in (*_COUNTS, "EVAL_PERIOD") else value


def scale_to_batch(cfg: CfgNode, given: Iterable[str] = ()) -> None:
    """Fit rate and schedule to SOLVER.IMS_PER_BATCH where the config was made for SOLVER.REFERENCE_BATCH: with s =
    IMS_PER_BATCH / REFERENCE_BATCH the rate is multiplied by s and all iteration counts are divided by s.

    Keys in ``given`` are left alone, and with MAX_ITER the warm-up, which could grow beyond it. REFERENCE_BATCH becomes
    the new batch, so that a saved config is not scaled again.
    """
    given, solver = set(given), cfg.SOLVER
    reference, batch = solver.REFERENCE_BATCH, solver.IMS_PER_BATCH
    if not solver.AUTO_SCALE or reference in (0, batch):
        return
    if "SOLVER.MAX_ITER" in given:
        given.add("SOLVER.WARMUP_ITERS")
    why = f"batch {reference} -> {batch}"
    for key in ("BASE_LR", *_COUNTS):
        set_unless_given(cfg, f"SOLVER.{key}", at_batch(key, solver[key], batch / reference), given, why)
    set_unless_given(
        cfg, "TEST.EVAL_PERIOD", at_batch("EVAL_PERIOD", cfg.TEST.EVAL_PERIOD, batch / reference), given, why
    )
    solver.REFERENCE_BATCH = batch
