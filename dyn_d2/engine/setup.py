"""From a command line to a frozen config: what every tool does first."""

import argparse
import difflib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from dyn_d2.backend import describe_engine
from dyn_d2.config import add_dyn_d2_config
from dyn_d2.config.names import merge_config
from dyn_d2.gating.policies.base import policy_class
from dyn_d2.utils.atomic import atomic_write
from dyn_d2.utils.errors import UserError
from dyn_d2.utils.lock import hold_folder

from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from .schedules import own_schedule, stage_schedule

logger = logging.getLogger(__name__)

FEATURES = ("backbone", "proposal_generator")  # F of the thesis, with the box head that is added per model


class Method(NamedTuple):
    """What a value of FEW_SHOT.METHOD stands for.

    Attributes:
        frozen: is F frozen in the fine-tuning stages?
        classifier: which of MODEL.ROI_BOX_HEAD.CLASSIFIER do they use?
        detector: meta-architecture; "" for the one of the config.
        tuned: that of the fine-tuning stage, where it is another one.
        stage: the FEW_SHOT.STAGE of a method that is a single training.
        full: whether FEW_SHOT.FULL holds.
    """

    frozen: bool = False
    classifier: str = "linear"
    detector: str = ""
    tuned: str = ""
    stage: str = ""
    full: bool = False


METHODS = {  # rows of Tables 7.1 to 7.6, then of Table 6.1
    "ft": Method(),
    "ft_full": Method(),
    "tfa_fc": Method(frozen=True),
    "tfa_cos": Method(frozen=True, classifier="cosine"),
    "joint": Method(stage="joint"),
    "joint_shots": Method(stage="joint_shots"),
    "yolo_joint": Method(detector="YOLOv2", stage="joint_shots"),
    "yolo_ft": Method(detector="YOLOv2"),
    "yolo_ft_full": Method(detector="YOLOv2", full=True),
    "lstd": Method(detector="YOLOv2", tuned="LSTDYOLOv2"),
    "lstd_full": Method(detector="YOLOv2", tuned="LSTDYOLOv2", full=True),
    "fsrw": Method(detector="FSRW"),
    "meta_rcnn": Method(detector="MetaRCNN"),
}
COSINE_BASE = ("lvis",)  # benchmarks whose base model for tfa_cos is published with a cosine head as well

# Keys that may differ between the config of an output directory and a run that goes on there.
_FREE_KEYS = (
    "OUTPUT_DIR",
    "MODEL.WEIGHTS",
    "MODEL.DEVICE",
    "TEST",
    "VIS_PERIOD",
    "DATALOADER.NUM_WORKERS",
    "INPUT.PARTIAL_MASKS.CACHE",
    "VERSION",
    "DATASETS.TEST",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.PREFLIGHT",
    "SOLVER.MAX_ITER",
    "SOLVER.STEPS",
    "CUDNN_BENCHMARK",
    "SOLVER.FIND_UNUSED_PARAMETERS",
    "SEED",
)


class OutputDirError(UserError):
    """OUTPUT_DIR holds a run with another config or stage."""


def read_cfg(config_file: str = "", opts: Iterable[str] = ()) -> CfgNode:
    """Defaults, then the yaml file, then ``KEY VALUE ...`` pairs.

    Raises:
        KeyError: unknown key, with the nearest known one.
        FileNotFoundError: no such yaml file.
    """
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    if config_file:
        try:
            _merge(cfg, lambda: merge_config(cfg, config_file))
        except yaml.YAMLError as error:
            raise ValueError(f"--config-file {config_file} is no valid yaml: {error}") from error
    _merge(cfg, lambda: cfg.merge_from_list(list(opts)))
    return cfg


def derive(cfg: CfgNode, given: Iterable[str] = ()) -> None:
    """Set what follows from other keys: classifier and freezing from the method, the stage's schedule, what a stage of
    the policy changes, the few-shot data sets, what is usual for a classification data set, the scaling to the batch.

    Args:
        cfg: changed in place.
        given: keys that the user set explicitly; they are left alone.

    Raises:
        ValueError: a key has a value that does not exist.
    """
    from dyn_d2.data.classification import apply_classification
    from dyn_d2.data.few_shot import apply_few_shot
    from dyn_d2.methods.tafe_net.data import apply_described

    given = set(given)
    if cfg.FEW_SHOT.BENCHMARK:
        apply_method(cfg, given)
        full = cfg.FEW_SHOT.METHOD in METHODS and METHODS[cfg.FEW_SHOT.METHOD].full
        for key, value in stage_schedule(cfg, full).items():
            _set(cfg, f"SOLVER.{key}", value, given, "stage " + cfg.FEW_SHOT.STAGE)
    _apply_policy_stage(cfg, given)
    apply_few_shot(cfg)
    apply_classification(cfg, lambda key, value, why: _set(cfg, key, value, given, why))
    apply_described(cfg, lambda key, value, why: _set(cfg, key, value, given, why))
    scale_to_batch(cfg, given)
    # A step at the very end changes nothing, but fvcore's schedules refuse it; rounding makes such steps too.
    before_the_end = tuple(step for step in cfg.SOLVER.STEPS if step < cfg.SOLVER.MAX_ITER)
    if len(before_the_end) < len(cfg.SOLVER.STEPS):
        _set(cfg, "SOLVER.STEPS", before_the_end, set(), f"training ends at {cfg.SOLVER.MAX_ITER}")


def build_cfg(config_file: str = "", opts: Iterable[str] = ()) -> CfgNode:
    """``read_cfg`` and ``derive`` in one; values given in ``opts`` are never changed."""
    opts = list(opts)
    cfg = read_cfg(config_file, opts)
    derive(cfg, opts[::2])
    return cfg


def _merge(cfg: CfgNode, merge: Callable[[], None]) -> None:
    try:
        merge()
    except (KeyError, AssertionError) as error:
        text = str(error).strip("'\"")
        if "Non-existent" not in text or "nearest" in text:  # an engine that names the nearest key itself
            raise
        unknown = text.rpartition(" ")[2]
        near = difflib.get_close_matches(unknown, list(flatten(cfg)), 1)
        hint = f", did you mean {near[0]}?" if near else "."
        raise KeyError(f"unknown config key {unknown}{hint}") from error


def flatten(cfg: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All keys of ``cfg`` as one dict of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in cfg.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return flat


def _set(cfg: CfgNode, key: str, value: Any, given: set[str], why: str) -> None:
    """Set a derived value, unless the user gave one on the command line."""
    *path, name = key.split(".")
    node = cfg
    for part in path:
        node = node[part]
    if key in given:
        logger.info(f"{key}: {node[name]} as given on the command line (not {value}, {why})")
    elif node[name] != value:
        logger.info(f"{key}: {node[name]} -> {value} ({why})")
        node[name] = value


def apply_method(cfg: CfgNode, given: set[str]) -> None:
    """FEW_SHOT.METHOD -> MODEL.META_ARCHITECTURE, MODEL.FREEZE and MODEL.ROI_BOX_HEAD.CLASSIFIER of the stage."""
    few = cfg.FEW_SHOT
    if few.METHOD not in ("", *METHODS):
        raise ValueError(f"FEW_SHOT.METHOD is {few.METHOD!r}: use '' or one of {sorted(METHODS)}.")
    if few.METHOD == "":
        return
    method, why = METHODS[few.METHOD], "method " + few.METHOD
    detector = method.tuned if method.tuned and few.STAGE == "finetune" else method.detector
    if detector:
        _set(cfg, "MODEL.META_ARCHITECTURE", detector, given, why)
    if few.STAGE in ("novel", "finetune"):
        _set(cfg, "MODEL.ROI_BOX_HEAD.CLASSIFIER", method.classifier, given, why)
        # The novel stage trains a predictor for fixed features, also where the fine-tuning frees them again.
        parts = feature_parts(cfg) if method.frozen or few.STAGE == "novel" else []
        _set(cfg, "MODEL.FREEZE", parts, given, why)
    elif few.STAGE == "base" and few.BENCHMARK in COSINE_BASE:
        _set(cfg, "MODEL.ROI_BOX_HEAD.CLASSIFIER", method.classifier, given, why)


def _apply_policy_stage(cfg: CfgNode, given: set[str]) -> None:
    """MODEL.POLICY.STAGE -> SOLVER keys of SOLVER.SECOND_STAGE."""
    stage = cfg.MODEL.POLICY.STAGE
    if stage not in policy_class(cfg).STAGES[1:]:
        return
    for key, value in own_schedule(cfg.SOLVER.SECOND_STAGE).items():
        own = {f"SOLVER.{key}"} if f"SOLVER.SECOND_STAGE.{key}" in given else set()  # the more special one wins
        _set(cfg, f"SOLVER.{key}", value, given - own, "stage " + stage)


def feature_parts(cfg: CfgNode) -> list[str]:
    """The modules of the feature extractor F (thesis 7.2), all but the predictors, of an FPN or C4 detector."""
    parts = [*FEATURES, "roi_heads.res5" if "Res5" in cfg.MODEL.ROI_HEADS.NAME else "roi_heads.box_head"]
    if cfg.MODEL.MASK_ON:
        parts += ["roi_heads.mask_head.mask_fcn*"] if cfg.MODEL.ROI_MASK_HEAD.NUM_CONV else []
        parts += ["roi_heads.mask_head.deconv"]
    if cfg.MODEL.MASK_ON and cfg.MODEL.ROI_HEADS.NAME == "ShapePropROIHeads":  # saliency is predicted by class
        parts += ["roi_heads.shape_prop.saliency_features"]
        parts += ["roi_heads.shape_prop.propagation*"] if cfg.MODEL.SHAPE_PROP.PROPAGATION else []
        parts += ["roi_heads.shape_prop.encoding"] if cfg.MODEL.SHAPE_PROP.INTEGRATION == "encoding" else []
    return parts


def scale_to_batch(cfg: CfgNode, given: Iterable[str] = ()) -> None:
    """Fit rate and schedule to SOLVER.IMS_PER_BATCH where the config was made for SOLVER.REFERENCE_BATCH: with s =
    IMS_PER_BATCH / REFERENCE_BATCH the rate is multiplied by s and all iteration counts are divided by s.

    Keys in ``given`` are left alone. REFERENCE_BATCH becomes the new batch, so that a saved config is not scaled again.
    """
    given, solver = set(given), cfg.SOLVER
    reference, batch = solver.REFERENCE_BATCH, solver.IMS_PER_BATCH
    if not solver.AUTO_SCALE or reference in (0, batch):
        return
    scale = batch / reference
    why = f"batch {reference} -> {batch}"
    _set(cfg, "SOLVER.BASE_LR", solver.BASE_LR * scale, given, why)
    _set(cfg, "SOLVER.STEPS", tuple(round(step / scale) for step in solver.STEPS), given, why)
    for key in ("SOLVER.MAX_ITER", "SOLVER.WARMUP_ITERS", "SOLVER.CHECKPOINT_PERIOD"):
        _set(cfg, key, round(solver[key.partition(".")[2]] / scale), given, why)
    _set(cfg, "TEST.EVAL_PERIOD", round(cfg.TEST.EVAL_PERIOD / scale), given, why)
    solver.REFERENCE_BATCH = batch


def _read_yaml(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        return yaml.safe_load(file)


def differing_keys(old: dict[str, Any], new: CfgNode, free: Iterable[str] = _FREE_KEYS) -> list[str]:
    """``KEY: old -> new`` for the keys in which two configs of one output directory must not differ."""
    before, after = flatten(old), flatten(yaml.safe_load(new.dump()))  # the file knows no tuples
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if any(key == name or key.startswith(name + ".") for name in free):
            continue
        if before.get(key) != after.get(key):
            lines.append(f"{key}: {before.get(key)} -> {after.get(key)}")
    return lines


def check_output_dir(cfg: CfgNode, resume: bool) -> None:
    """Refuse to mix two runs in one directory.

    Raises:
        OutputDirError: OUTPUT_DIR holds checkpoints of another config or stage.
    """
    saved = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    if not os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")) or not os.path.isfile(saved):
        return
    changed = differing_keys(_read_yaml(saved), cfg)
    if changed:
        raise OutputDirError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} holds a run with another config:\n  "
            + "\n  ".join(changed[:20])
            + ("\n  ..." if len(changed) > 20 else "")
            + "\nChoose another OUTPUT_DIR"
            + (", or give the old values to resume." if resume else ".")
        )
    if not resume:
        logger.warning(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} holds a run with this config; starting afresh replaces it "
            "(--resume would go on from its last checkpoint)"
        )


def _choose_seed(cfg: CfgNode, resume: bool) -> None:
    """Give SEED a value: on resume that of the first run, else, where it is negative, a random one."""
    saved = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    if resume and os.path.isfile(saved):
        old = _read_yaml(saved)["SEED"]
        if cfg.SEED not in (-1, old):
            raise OutputDirError(f"SEED is {cfg.SEED}, the run in {cfg.OUTPUT_DIR} has {old}: give that one to resume.")
        cfg.SEED = old
    elif cfg.SEED < 0:
        cfg.SEED = comm.shared_random_seed() % 2**31
        logger.info(f"SEED: {cfg.SEED} (drawn at random; set SEED to repeat this run)")


def _check_device(cfg: CfgNode) -> None:
    if torch.cuda.is_available():
        return
    if cfg.MODEL.DEVICE.startswith("cuda"):
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but torch finds no GPU here: add MODEL.DEVICE cpu to the command, or "
            "see what python -m dyn_d2.doctor says if there should be one."
        )


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a command line (Detectron2's ``default_argument_parser``), with logging and seeds set up
    and the config written to OUTPUT_DIR.

    Raises:
        KeyError, ValueError: from ``build_cfg``, or MODEL.DEVICE is not there.
        OutputDirError: OUTPUT_DIR belongs to another run.
        FolderInUse: another process trains into OUTPUT_DIR now.
    """
    cfg = read_cfg(args.config_file, args.opts)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="dyn_d2")
    logger.info(describe_engine())
    derive(cfg, args.opts[::2])
    _check_device(cfg)
    resume, evaluate = getattr(args, "resume", False), getattr(args, "eval_only", False)
    _choose_seed(cfg, resume)
    if not evaluate:
        if comm.is_main_process():
            hold_folder(cfg.OUTPUT_DIR)
        check_output_dir(cfg, resume)
    cfg.freeze()
    saved = Path(cfg.OUTPUT_DIR, "config.yaml")
    before = saved.read_text(encoding="utf-8") if evaluate and saved.is_file() else None
    comm.synchronize()  # default_setup writes the file that all processes have just read
    default_setup(cfg, args)
    if before is not None and comm.is_main_process():
        with atomic_write(saved) as file:  # evaluation must not rewrite what a training run is resumed with
            file.write(before)
    return cfg
