"""Published rates and iterations of two-stage fine-tuning, for 16 images a batch.

Source of each number: the configs and scripts published with Wang et al., "Frustratingly simple few-shot object
detection" (ICML 2020). Split 2 of VOC was published with rate 0.005 for the first sample of shots (seed 0); everything
else uses the 0.001 that the paper states.
"""

from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

from dyn_d2.data.few_shot.stages import BASE, FINETUNE, JOINT, JOINT_SHOTS, NOVEL


class Schedule(NamedTuple):
    """SOLVER keys of one stage."""

    BASE_LR: float
    STEPS: tuple[int, ...]
    MAX_ITER: int
    WARMUP_ITERS: int


PUBLISHED_BASE = {
    "voc": Schedule(0.02, (12000, 16000), 18000, 100),
    "coco": Schedule(0.02, (85000, 100000), 110000, 1000),
    "lvis": Schedule(0.02, (60000, 80000), 90000, 1000),
}

# K: (step, iterations)
VOC = {1: (3500, 4000), 2: (7000, 8000), 3: (10500, 12000), 5: (17500, 20000), 10: (35000, 40000)}
# Cosine classifier, splits 1 and 3, seed 0; K: (step, warm-up where features are frozen)
VOC_COSINE = {1: (3000, 0), 2: (7000, 0), 3: (11000, 10), 5: (18000, 10), 10: (36000, 10)}
COCO = {
    1: (14400, 16000),
    2: (28800, 32000),
    3: (43200, 48000),
    5: (72000, 80000),
    10: (144000, 160000),
    30: (216000, 240000),
}
# The rate never drops: its step lies behind the end.
COCO_NOVEL = {
    1: (10000, 500),
    2: (10000, 1500),
    3: (10000, 1500),
    5: (10000, 1500),
    10: (10000, 2000),
    30: (10000, 6000),
}
LVIS_STEP, LVIS_ITERATIONS = 15000, 20000

# FRCN+ft is FRCN+ft-full with fewer iterations; the paper cites it from others and gives no number. Ours:
FT_SHARE = 0.1


# (benchmark, stage): K -> (step, iterations)
TABLES = {("voc", FINETUNE): VOC, ("coco", FINETUNE): COCO, ("coco", NOVEL): COCO_NOVEL}
NEEDED = ("BASE_LR", "MAX_ITER")  # what a schedule of one's own cannot do without


def published_schedule(cfg) -> Schedule | None:
    """The published schedule of the benchmark, stage and K that ``cfg`` names; None: there is none."""
    few = cfg.FEW_SHOT
    if few.BENCHMARK not in PUBLISHED_BASE:
        return None
    if few.STAGE in (BASE, JOINT, JOINT_SHOTS):
        return PUBLISHED_BASE[few.BENCHMARK]
    if few.BENCHMARK == "lvis":
        return _lvis(cfg)
    table = TABLES.get((few.BENCHMARK, few.STAGE), {})
    if few.SHOTS not in table:
        return None
    step, iterations = table[few.SHOTS]
    if few.STAGE == NOVEL:
        return Schedule(0.01, (step,), iterations, 0)
    if few.BENCHMARK == "coco":
        return Schedule(0.001, (step,), iterations, 10 if cfg.MODEL.FREEZE else 0)
    return _voc(cfg)


def _voc(cfg) -> Schedule:
    few = cfg.FEW_SHOT
    step, iterations = VOC[few.SHOTS]
    published_sample = few.SEED == 0
    if few.SPLIT == 2:
        return Schedule(0.005 if published_sample else 0.001, (step,), iterations, 0)
    if published_sample and cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER == "cosine":
        step, warmup = VOC_COSINE[few.SHOTS]
        return Schedule(0.001, (step,), iterations, warmup if cfg.MODEL.FREEZE else 0)
    return Schedule(0.001, (step,), iterations, 0)


def _lvis(cfg) -> Schedule:
    linear_repeat = (
        cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER == "linear" and cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler"
    )
    halved = linear_repeat and cfg.MODEL.RESNETS.DEPTH == 50
    if cfg.FEW_SHOT.STAGE == NOVEL:
        return Schedule(0.005 if halved else 0.01, (LVIS_STEP,), LVIS_ITERATIONS, 0)
    if linear_repeat:
        return Schedule(0.0005 if halved else 0.001, (1000,), 2000, 0)
    return Schedule(0.001, (LVIS_STEP,), LVIS_ITERATIONS, 0)


Keys = dict[str, float | int | tuple[int, ...]]  # of SOLVER, with their values


def own_schedule(node: Mapping[str, float | int | Sequence[int]]) -> Keys:
    """The SOLVER keys that a node such as FEW_SHOT.FINETUNE or SOLVER.SECOND_STAGE sets, with their values."""
    given: Keys = {}
    for key, value in node.items():
        if isinstance(value, Sequence) and not isinstance(value, str):
            given |= {key: tuple(value)} if value else {}
        elif value >= 0 if key in ("WARMUP_ITERS", "WEIGHT_DECAY") else value:
            given[key] = value
    return given


def _sections(cfg, full: bool) -> tuple[str, ...]:
    """The sections of FEW_SHOT that set SOLVER keys of the stage; a later one wins."""
    finetune = ("FINETUNE", "FULL") if full else ("FINETUNE",)
    return {BASE: ("BASE",), NOVEL: ("NOVEL",), FINETUNE: finetune}.get(cfg.FEW_SHOT.STAGE, ())


def given_for_stage(cfg, full: bool, given: Container[str]) -> dict[str, str]:
    """SOLVER key -> the key of FEW_SHOT, one of ``given``, that sets it for the stage of ``cfg``."""
    found = {
        key: f"FEW_SHOT.{section}.{key}"
        for section in _sections(cfg, full)
        for key in own_schedule(cfg.FEW_SHOT[section])
    }
    return {key: name for key, name in found.items() if name in given}


def stage_schedule(cfg, full: bool = False, given: Container[str] = ()) -> Keys:
    """The SOLVER keys that stage and FEW_SHOT.SCHEDULE change, with their values.

    What was published wins over the stage's own keys (FEW_SHOT.BASE, NOVEL, FINETUNE), which fill in what is missing,
    unless they are given on the command line.

    Args:
        full: the method fine-tunes until nothing changes any more, for which FEW_SHOT.FULL is.
        given: keys on the command line.

    Raises:
        ValueError: unknown FEW_SHOT.SCHEDULE, or nothing published for the case and nothing filled in.
    """
    few = cfg.FEW_SHOT
    if few.SCHEDULE not in ("", "thesis"):
        raise ValueError(f"FEW_SHOT.SCHEDULE is {few.SCHEDULE!r}: use '' or 'thesis'.")
    keys: Keys = {}
    for section in _sections(cfg, full):
        keys |= own_schedule(few[section])
    if few.STAGE == FINETUNE and few.ITERS_PER_SHOT * few.SHOTS and "FEW_SHOT.FINETUNE.MAX_ITER" not in given:
        keys["MAX_ITER"] = few.ITERS_PER_SHOT * few.SHOTS
    if few.SCHEDULE == "thesis":
        wanted = {key: keys[key] for key in given_for_stage(cfg, full, given)}
        keys = _filled(cfg, keys, full) | wanted
    if few.METHOD == "ft" and few.STAGE == FINETUNE:
        iterations, steps = keys.get("MAX_ITER", cfg.SOLVER.MAX_ITER), keys.get("STEPS", cfg.SOLVER.STEPS)
        keys["MAX_ITER"] = max(1, round(iterations * FT_SHARE))
        keys["STEPS"] = tuple(max(1, round(step * FT_SHARE)) for step in steps)
    return keys


def _filled(cfg, own: Keys, full: bool) -> Keys:
    """The published schedule, with what is missing from ``own``, the keys of the stage."""
    few, published = cfg.FEW_SHOT, published_schedule(cfg)
    if published is not None:
        return {**own, **published._asdict()}
    sections = _sections(cfg, full)
    missing = [key for key in NEEDED if key not in own]
    if not missing:
        return {"STEPS": (), "WARMUP_ITERS": 0, **own}  # as in all novel stages that were published
    if few.BENCHMARK not in PUBLISHED_BASE:
        what = f"benchmark {few.BENCHMARK!r}, only for {sorted(PUBLISHED_BASE)}"
    else:
        there = sorted(TABLES.get((few.BENCHMARK, few.STAGE), {})) or "none"
        what = f"{few.BENCHMARK}, stage {few.STAGE}, {few.SHOTS} shots (there: {there})"
    remedy = " and ".join(f"FEW_SHOT.{sections[0]}.{key}" for key in missing) if sections else "SOLVER keys"
    without = "" if sections else " and leave FEW_SHOT.SCHEDULE empty"
    raise ValueError(f"FEW_SHOT.SCHEDULE thesis: nothing is published for {what}: set {remedy}{without}.")
