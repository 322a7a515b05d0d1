"""How the yaml files of FSRW become small: see tests/config_kinds.py."""

import torch
from config_kinds import DETECTOR, Inputs, Kind, detected, objects
from torch import nn

from dyn_d2.config.derive import apply_few_shot_method
from dyn_d2.methods.fsrw.meta_arch import FSRW
from dyn_d2.methods.fsrw.reweighting import ClassVectors

from detectron2.config import CfgNode


def _episode(cfg: CfgNode, training: bool) -> Inputs:
    batch = objects(cfg, training)
    if training:
        images = torch.randint(0, 2, (5, 4, 64, 64), dtype=torch.uint8)
        batch[0]["support"] = {"image": images, "boxes": torch.tensor([[8.0, 8, 40, 40]] * 5)}
    return batch


def _use_method(cfg: CfgNode, method: str) -> None:
    """The meta-architecture with which a method fine-tunes."""
    derived = cfg.clone()
    derived.merge_from_list(["FEW_SHOT.METHOD", method, "FEW_SHOT.STAGE", "finetune"])
    apply_few_shot_method(derived, set())
    cfg.MODEL.META_ARCHITECTURE = derived.MODEL.META_ARCHITECTURE


def _use_vectors(model: nn.Module, batch: Inputs) -> None:
    if isinstance(model, FSRW):
        vectors = model.embed(batch[0]["support"])
        model.use_vectors(ClassVectors.mean_of({str(i): vector[None] for i, vector in enumerate(vectors)}))


SQUARE = (
    *DETECTOR, "MODEL.DARKNET.WIDTH", 0.05, "MODEL.REWEIGHTING.WIDTH", 0.05, "MODEL.REWEIGHTING.SUPPORT_SIZE", 64,
    "MODEL.YOLO.SIZE", 96, "MODEL.YOLO.TRAIN_SIZES", [64, 128],
    "MODEL.YOLO.CACHE", "", "MODEL.TIMM.WEIGHTS", "",
)  # fmt: skip
KINDS = (
    Kind(
        r"FSRW", SQUARE, _episode, lambda cfg: {"loss_class", "loss_box", "loss_objectness"}, "predictor.weight",
        detected, variants=lambda cfg: {method: [] for method in ("fsrw", "yolo_ft", "lstd")}, prepare=_use_method,
        more_losses=True, ready=_use_vectors,
    ),
)  # fmt: skip
