"""Checkpoints of tiny networks for IDK cascades, with random weights."""

from pathlib import Path

import torch
from route_tables import classifier_cfg
from tiny_detection import tiny_opts

from dyn_d2.checkpoint import DynCheckpointer, describe
from dyn_d2.config.read import read_cfg

from detectron2.modeling import build_model


def save(cfg, folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    model = build_model(cfg)
    DynCheckpointer(model, str(folder), metadata=describe(cfg, model)).save("model_final")
    return str(folder / "model_final.pth")


def save_classifier(folder: Path, depth: int, policy: str = "all_open", train: str = "digits_train_fit") -> str:
    """A ResNet for digits whose answers are far from uniform."""
    cfg = classifier_cfg(policy)
    cfg.MODEL.RESNETS.DEPTH, cfg.DATASETS.TRAIN = depth, (train,)
    path = save(cfg, folder, depth)
    data = torch.load(path, weights_only=True)
    data["model"]["linear.weight"] *= 40
    torch.save(data, path)
    return path


def save_detector(folder: Path, size: int, train: str, data: Path) -> str:
    """A detector of four classes, for images of ``size`` pixels."""
    cfg = read_cfg("", tiny_opts(data, folder, FEW_SHOT__BENCHMARK="", INPUT__MIN_SIZE_TEST=size))
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 4, 0.0
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (train,), ()
    return save(cfg, folder, size)
