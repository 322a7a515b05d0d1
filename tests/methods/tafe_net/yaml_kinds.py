"""How the yaml files of TAFE-Net become small: see tests/config_kinds.py."""

import torch
from config_kinds import CPU, Inputs, Kind, scored

from dyn_d2.config.derive import derive
from dyn_d2.methods.tafe_net.data import is_described

from detectron2.config import CfgNode


def _digit_attributes(cfg: CfgNode, variant: str) -> None:
    for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST):  # need not be here, but have to be known
        assert all(is_described(name) for name in names)
    cfg.ZERO_SHOT.CUSTOM.update({"TRAIN": "", "TEST": "", "CLASSES": ""})
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("digit_attributes_1_train",), ("digit_attributes_1_test",)
    derive(cfg)


def _described(cfg: CfgNode, training: bool) -> Inputs:
    dataset = {} if training else {"dataset": cfg.DATASETS.TEST[0]}
    return [{"feature": torch.rand(1, 8, 8), "label": label, **dataset} for label in (0, 1, 3, 1)]


KINDS = (
    Kind(
        r"TAFENet", (*CPU[:2], "MODEL.TAFE_NET.FC_DIMS", [8, 6], "MODEL.TAFE_NET.TASK_HIDDEN", 7), _described,
        lambda cfg: {"loss_cls", "loss_emb"}, "meta_learner.generators.0.weight", scored, prepare=_digit_attributes,
    ),
)  # fmt: skip
