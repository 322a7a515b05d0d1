"""The stages of few-shot training, values of FEW_SHOT.STAGE."""

from detectron2.config import CfgNode

BASE = "base"  # all data of the base classes
NOVEL = "novel"  # K shots of the novel classes, a predictor for these alone
FINETUNE = "finetune"  # K shots of all classes
JOINT = "joint"  # all data of all classes
JOINT_SHOTS = "joint_shots"  # all data of the base classes and K shots of the novel ones

STAGES = (BASE, NOVEL, FINETUNE, JOINT, JOINT_SHOTS)
FINETUNING_STAGES = (NOVEL, FINETUNE)
ON_ALL_DATA = (BASE, JOINT)


def is_fine_tuning(cfg: CfgNode) -> bool:
    """Whether ``cfg`` trains on K shots what a base model has learned."""
    return bool(cfg.FEW_SHOT.BENCHMARK) and cfg.FEW_SHOT.STAGE in FINETUNING_STAGES
