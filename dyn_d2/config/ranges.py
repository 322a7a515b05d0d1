"""Which values the keys of a config may have, Detectron2's and the platform's; methods bring tables of their own.

A value that no training or evaluation can use is refused here, where the config is read, and all of them at once. What
depends on several keys stands in ``relations.py``.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from typing import Any

from dyn_d2.method import methods

from detectron2.config import CfgNode, get_cfg

from . import add_dyn_d2_config
from .keys.training import SCHEDULERS, stage_ranges
from .relations import related_problems
from .rules import (
    CHANNELS,
    LAYERS,
    PIXELS,
    Rule,
    choice,
    device,
    each,
    empty,
    flag,
    is_finite,
    names,
    norm,
    nothing,
    number,
    positive,
    positive_share,
    registered,
    share,
    text,
    whole,
)

_CLASSES = 100_000
_BOX_LOSSES = choice("smooth_l1", "giou", "diou", "ciou")
_LABELS = each(choice(-1, 0, 1), 2)
_PER_MAP = " for each feature map, or one for all"


def _per_map(rule: Rule) -> Rule:
    """A list of lists, one for each feature map or one for all, or the latter without its outer brackets."""
    nested, flat = each(each(rule)), each(rule)
    said = f"a list of lists, one{_PER_MAP}; each value {rule.text}"
    return Rule(lambda value: nested.fits(value) or flat.fits(value), said)


def _registry(name: str) -> Rule:
    return registered(name, lambda: getattr(import_module("detectron2.modeling"), f"{name}_REGISTRY"))


_MODEL = {
    "MODEL.DEVICE": device(),
    "MODEL.META_ARCHITECTURE": _registry("META_ARCH"),
    "MODEL.PIXEL_MEAN": each(number()),
    "MODEL.PIXEL_STD": each(positive()),
    "MODEL.BACKBONE.NAME": _registry("BACKBONE"),
    "MODEL.BACKBONE.FREEZE_AT": whole(0, 5),
    "MODEL.RESNETS.DEPTH": whole(1, 2000),
    "MODEL.RESNETS.OUT_FEATURES": each(text(filled=True)),
    "MODEL.RESNETS.NUM_GROUPS": whole(1, 256),
    "MODEL.RESNETS.WIDTH_PER_GROUP": whole(1, 1024),
    "MODEL.RESNETS.RES4_DILATION": choice(1, 2),
    "MODEL.RESNETS.RES5_DILATION": choice(1, 2, 4),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": whole(1, 2048),
    "MODEL.RESNETS.STEM_OUT_CHANNELS": whole(1, 2048),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": each(flag(), 4, 4),
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": whole(1, 256),
    "MODEL.FPN.IN_FEATURES": names(),
    "MODEL.FPN.OUT_CHANNELS": whole(1, CHANNELS),
    "MODEL.FPN.FUSE_TYPE": choice("sum", "avg"),
    "MODEL.ANCHOR_GENERATOR.NAME": _registry("ANCHOR_GENERATOR"),
    "MODEL.ANCHOR_GENERATOR.SIZES": _per_map(number(0, PIXELS, above=True)),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": _per_map(number(0, 1000, above=True)),
    "MODEL.ANCHOR_GENERATOR.ANGLES": _per_map(number(-360, 360)),
    "MODEL.ANCHOR_GENERATOR.OFFSET": number(0, 1, below=True),
    "MODEL.PROPOSAL_GENERATOR.NAME": _registry("PROPOSAL_GENERATOR") | choice("PrecomputedProposals"),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": whole(0, PIXELS),
    "MODEL.RETINA_MASK.PROPOSALS": whole(0),
    "MODEL.IMAGE_CLASSIFIER.NUM_CLASSES": whole(2, _CLASSES),
    "MODEL.TIMM.NORM": choice("FrozenBN", "BN", "SyncBN"),
    "MODEL.FREEZE": names(),
    "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT": number(0),
    "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH": share(),
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": number(0),
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": share(),
}
_HEADS = {
    "MODEL.RPN.HEAD_NAME": _registry("RPN_HEAD"),
    "MODEL.RPN.IN_FEATURES": each(text(filled=True)),
    "MODEL.RPN.CONV_DIMS": each(choice(-1) | whole(1, CHANNELS)),
    "MODEL.RPN.BOUNDARY_THRESH": whole(-1),
    "MODEL.ROI_HEADS.NAME": _registry("ROI_HEADS") | choice(""),
    "MODEL.ROI_BOX_HEAD.NAME": _registry("ROI_BOX_HEAD") | choice(""),
    "MODEL.ROI_MASK_HEAD.NAME": _registry("ROI_MASK_HEAD") | choice(""),
    "MODEL.SEM_SEG_HEAD.NAME": _registry("SEM_SEG_HEADS"),
    "MODEL.ROI_HEADS.IN_FEATURES": each(text(filled=True)),
    "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER": number(0),
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": whole(1),
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": each(each(positive(), 4, 4)),
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": each(share(), rising=True),
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": each(whole(1, CHANNELS)),
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": whole(1, _CLASSES),
    "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE": whole(0),
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": each(text(filled=True)),
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": whole(-1000, 65535),
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": whole(1, CHANNELS),
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": choice(1, 2, 4, 8, 16, 32, 64),
    "MODEL.RETINANET.IN_FEATURES": each(text(filled=True)),
    "MODEL.RETINANET.NUM_CONVS": whole(0, LAYERS),
    "MODEL.RETINANET.PRIOR_PROB": number(0, 1, above=True, below=True),
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": number(0, 1000),
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": number(-1, 1),
    # What several heads have alike.
    "*.NUM_CLASSES": whole(1, _CLASSES),
    "*.NORM": norm(),
    "*.POOLER_RESOLUTION": whole(1, 256),
    "*.POOLER_SAMPLING_RATIO": whole(0, 64),
    "*.POOLER_TYPE": choice("ROIAlignV2", "ROIAlign", "ROIPool", "ROIAlignRotated"),
    "*.NUM_CONV": whole(0, LAYERS),
    "*.NUM_FC": whole(0, LAYERS),
    "*.CONV_DIM": whole(1, CHANNELS),
    "*.FC_DIM": whole(1, CHANNELS),
    "*.IOU_THRESHOLDS": each(number(0, 1, above=True), rising=True),
    "*.IOU_LABELS": _LABELS,
    "*.BATCH_SIZE_PER_IMAGE": whole(1, 1_000_000),
    "*.POSITIVE_FRACTION": positive_share(),
    "*.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "*.BBOX_REG_LOSS_WEIGHT": number(0) | each(number(0), 4, 4),
    "*.BBOX_REG_WEIGHTS": each(positive(), 4),
    "*.SMOOTH_L1_BETA": number(0),
    "*.SMOOTH_L1_LOSS_BETA": number(0),
    "*.LOSS_WEIGHT": number(0),
    "*_TOPK_TRAIN": whole(1),
    "*_TOPK_TEST": whole(1),
    "*.TOPK_CANDIDATES_TEST": whole(1),
    "*.NMS_THRESH": share(),
    "*.NMS_THRESH_TEST": share(),
    "*.SCORE_THRESH_TEST": share(),
}
_DATA = {
    "INPUT.FORMAT": choice("BGR", "RGB", "L", "YUV-BT.601", "1", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F"),
    "INPUT.MASK_FORMAT": choice("polygon", "bitmask"),
    "INPUT.MIN_SIZE_TRAIN": each(whole(0, PIXELS)),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": choice("choice", "range"),
    "INPUT.MAX_SIZE_TRAIN": whole(1, PIXELS),
    "INPUT.MIN_SIZE_TEST": whole(0, PIXELS),
    "INPUT.MAX_SIZE_TEST": whole(1, PIXELS),
    "INPUT.RANDOM_FLIP": choice("horizontal", "vertical", "none"),
    "INPUT.CROP.TYPE": choice("relative_range", "relative", "absolute", "absolute_range"),
    "INPUT.CROP.SIZE": each(number(0, PIXELS, above=True), 2, 2),
    "INPUT.RANDOM_SCALE": empty() | each(number(0, 100, above=True), 2, 2, rising=True),
    "INPUT.CLASSIFICATION.RECIPE": choice(
        "auto", "", "cifar10", "cifar100", "svhn", "imagenet", "digits", "small_images"
    ),
    "INPUT.CLASSIFICATION.PAD_CROP": whole(0, PIXELS),
    "INPUT.CLASSIFICATION.RANDOM_RESIZED_CROP": whole(0, PIXELS),
    "INPUT.CLASSIFICATION.SCALE": each(positive_share(), 2, 2, rising=True),
    "INPUT.CLASSIFICATION.COLOR": share(),
    "INPUT.CLASSIFICATION.RESIZE_TEST": whole(0, PIXELS),
    "INPUT.CLASSIFICATION.CROP_TEST": whole(0, PIXELS),
    "INPUT.PARTIAL_MASKS.CLASSES": names(),
    "INPUT.PARTIAL_MASKS.FRACTION": positive_share(),
    "INPUT.PARTIAL_MASKS.SEED": whole(0),
    "INPUT.PARTIAL_MASKS.PSEUDO": text(filled=True),
    "INPUT.PARTIAL_MASKS.GRABCUT.ITERATIONS": whole(1, 1000),
    "INPUT.PARTIAL_MASKS.GRABCUT.MARGIN": number(0, 100),
    "DATASETS.TRAIN": names(),
    "DATASETS.TEST": names(),
    "INPUT.ALBUMENTATIONS": names(),
    "DATASETS.VAL": names(),
    "DATASETS.IMPORT": names(),
    "DATASETS.CUSTOM.NAME": text(filled=True),
    "DATASETS.CUSTOM.FORMAT": choice("", "coco", "voc", "yolo", "semantic", "folders"),
    "DATASETS.CUSTOM.CLASSES": names(),
    "DATASETS.CUSTOM.HOLD_OUT": number(0, 0.9),
    "DATASETS.CUSTOM.IGNORE": whole(0, 255),
    "DATASETS.PROPOSAL_FILES_TRAIN": names(),
    "DATASETS.PROPOSAL_FILES_TEST": names(),
    "DATALOADER.NUM_WORKERS": whole(0, 1024),
    "DATALOADER.SAMPLER_TRAIN": choice("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"),
    "DATALOADER.REPEAT_THRESHOLD": share(),
    "DATALOADER.RANDOM_SUBSET_RATIO": positive_share(),
    "FEW_SHOT.SPLIT": whole(1, 1000),
    "FEW_SHOT.SHOTS": whole(0),
    "FEW_SHOT.ITERS_PER_SHOT": whole(0),
    "FEW_SHOT.MAX_OBJECTS": whole(0, 10_000),
    "FEW_SHOT.SEED": whole(0),
    "FEW_SHOT.CACHE": choice("auto", "on", "off"),
    "FEW_SHOT.CACHE_GB": positive(),
    "FEATURE_CACHE.MODE": choice("auto", "on", "off"),
    "FEATURE_CACHE.GB": positive(),
    "FEW_SHOT.TRAIN_SETS": names(),
    "FEW_SHOT.TEST_SETS": names(),
    "FEW_SHOT.CUSTOM.NAME": text(filled=True),
    "FEW_SHOT.CUSTOM.BASE_CLASSES": names(),
    "FEW_SHOT.CUSTOM.NOVEL_CLASSES": names(),
}
_SOLVER = {
    "SOLVER.IMS_PER_BATCH": whole(1, 1_000_000),
    "SOLVER.MAX_ITER": whole(1),
    "SOLVER.BASE_LR": positive(),
    "SOLVER.BASE_LR_END": number(0),
    "SOLVER.LR_SCHEDULER_NAME": choice(*SCHEDULERS),
    "SOLVER.STEPS": each(whole(1), 0, rising=True),
    "SOLVER.GAMMA": positive_share(),
    "SOLVER.NUM_DECAYS": whole(0, 1_000_000),
    "SOLVER.WARMUP_METHOD": choice("linear", "constant"),
    "SOLVER.WARMUP_ITERS": whole(0),
    "SOLVER.WARMUP_FACTOR": share(),
    "SOLVER.MOMENTUM": number(0, 1, below=True),
    "SOLVER.WEIGHT_DECAY": number(0),
    "SOLVER.WEIGHT_DECAY_NORM": number(0) | nothing(),
    "SOLVER.WEIGHT_DECAY_BIAS": number(0) | nothing(),
    "SOLVER.BIAS_LR_FACTOR": number(0),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": choice("value", "norm"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": positive(),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": positive() | choice(float("inf")),
    "SOLVER.CHECKPOINT_PERIOD": whole(1),
    "SOLVER.REFERENCE_WORLD_SIZE": whole(0, 1_000_000),
    "SOLVER.REFERENCE_BATCH": whole(0, 1_000_000),
    "SOLVER.OPTIMIZER": text(filled=True),
    "SOLVER.POLICY_OPTIMIZER": choice("", "Adam"),
    "SOLVER.OPTIMIZER_OPTIONS": names(),
    "SOLVER.EMA": number(0, 1, below=True),
    "SOLVER.BEST.MODE": choice("max", "min"),
    "SOLVER.BEST.PATIENCE": whole(0),
    "SOLVER.WRITERS": each(choice("wandb", "mlflow"), 0),
    "SOLVER.PROJECT": text(filled=True),
    "SOLVER.POLY_LR_POWER": number(0, 1000, above=True),
    "SOLVER.POLY_LR_CONSTANT_ENDING": share(),
    "SOLVER.BACKBONE_LR_FACTOR": number(0),
    "SOLVER.HALVING_ITERS": whole(1),
    "SOLVER.PROCESS_TIMEOUT": whole(1, 10_000_000),
}
_TEST = {
    "TEST.EVAL_PERIOD": whole(0),
    "TEST.EXPECTED_RESULTS": each(Rule(lambda v: _is_expectation(v), "[data set, task, metric, value, tolerance]"), 0),
    "TEST.DETECTIONS_PER_IMAGE": whole(1) | choice(-1),
    "TEST.KEYPOINT_OKS_SIGMAS": each(positive(), 0),
    "TEST.AUG.ENABLED": Rule(lambda v: v is False, "False: nothing here averages over augmented images"),
    "TEST.AUG.MIN_SIZES": each(whole(1, PIXELS)),
    "TEST.AUG.MAX_SIZE": whole(1, PIXELS),
    "TEST.PRECISE_BN.NUM_ITER": whole(1),
    "TEST.IMS_PER_BATCH": whole(1, 1_000_000),
    "TEST.MASKED_CLASSES": names(),
    "OUTPUT_DIR": Rule(text(filled=True).fits, "the path of a folder"),
    "SEED": whole(-(2**31)),
    "FLOAT32_PRECISION": choice("", "highest", "high", "medium"),
    "VIS_PERIOD": whole(0),
    "GLOBAL.HACK": number(),
    "VERSION": choice(2),
}


def _is_expectation(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 5:
        return False
    return all(isinstance(part, str) for part in value[:3]) and all(number().fits(part) for part in value[3:])


_STAGES: dict[str, Rule] = {}
for _stage in ("BASE", "NOVEL", "FINETUNE", "FULL"):
    _STAGES |= stage_ranges(f"FEW_SHOT.{_stage}")
RANGES: Mapping[str, Rule] = {**_MODEL, **_DATA, **_SOLVER, **_TEST, **_STAGES, **_HEADS}


def all_ranges() -> dict[str, Rule]:
    """The table of the platform and those of all methods; a name may have "*" in place of its beginning."""
    found = dict(RANGES)
    for method in methods():
        found |= method.ranges
    return found


def rule_of(key: str, rules: Mapping[str, Rule]) -> Rule | None:
    """What holds for ``key``; its own name wins over a pattern."""
    if key in rules:
        return rules[key]
    return next((rule for name, rule in rules.items() if "*" in name and fnmatchcase(key, name)), None)


def text_lists() -> list[str]:
    """Keys whose lists hold nothing but text."""
    return [key for key, rule in all_ranges().items() if rule.texts]


@cache
def default_values() -> dict[str, Any]:
    """Every key with its default, by its dotted name."""
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    return dict(_leaves(cfg))


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def value_problems(cfg: CfgNode) -> list[str]:
    """``KEY is VALUE: use ...`` of each key whose value alone cannot be used."""
    rules, defaults = all_ranges(), default_values()
    found = []
    for key, value in _leaves(cfg):
        rule = rule_of(key, rules) if key in defaults else None
        if rule is not None:
            wanted = "" if rule.fits(value) else rule.text
        else:
            wanted = _wanted(value, defaults.get(key, value))
        if wanted:
            found.append(f"{key} is {_shown(value)}: use {wanted}.")
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _wanted(value: Any, default: Any) -> str:
    """Of a key without a rule: what its value should be, if it is something else."""
    if not is_finite(value):
        return "finite numbers"
    if value is None and default is not None:
        return f"a value like the default, {default!r}"
    if isinstance(default, list | tuple) and default and all(isinstance(part, str) for part in default):
        return "" if names().fits(value) else names().text
    return ""


def check_ranges(cfg: CfgNode, related: bool = True) -> None:
    """All keys have values that can be used.

    Args:
        related: also look at what keys are to each other, which is known once all values have been derived.

    Raises:
        ValueError: lists the keys that have not.
    """
    found = value_problems(cfg)
    if not found and related:
        found = related_problems(cfg)
    if len(found) == 1:
        raise ValueError(found[0])
    if found:
        raise ValueError(f"{len(found)} keys of the config have values that cannot be used:\n  " + "\n  ".join(found))
