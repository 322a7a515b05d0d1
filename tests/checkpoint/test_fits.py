"""Weights for other classes or other images than the config's are noticed, though every shape fits."""

import logging

import pytest
import torch
import torchvision
from tiny_detection import CLASSES, save_detector, tiny_opts
from tiny_tasks import task_opts

from dyn_d2.checkpoint import CheckpointError, DynCheckpointer, read_checkpoint
from dyn_d2.checkpoint.fits import differing_settings, require_same_classes, warn_of_settings
from dyn_d2.config.derive import build_cfg
from dyn_d2.engine.trainer import DynTrainer, evaluate

from detectron2.modeling import build_model


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A config whose run is done, and its folder."""
    folder = tmp_path_factory.mktemp("detector")
    return save_detector(folder), folder


def _renamed(folder, path, classes) -> str:
    """The checkpoint of ``folder`` as one that has its rows for ``classes``."""
    data = read_checkpoint(str(folder / "model_final.pth"))
    data["dyn_d2"]["classes"] = list(classes)
    torch.save(data, path)
    return str(path)


ORDER = ("green", "red", "blue", "yellow")


def _cfg(folder, weights, **more):
    more = {"FEW_SHOT__STAGE": "finetune", "FEW_SHOT__SHOTS": 1, "MODEL__WEIGHTS": weights, **more}
    return build_cfg("", tiny_opts(folder / "data" / "instances.json", folder / "out", **more))


def test_evaluation_refuses_another_order(detector, tmp_path) -> None:
    _, folder = detector
    cfg = _cfg(folder, _renamed(folder, tmp_path / "other.pth", ORDER))
    with pytest.raises(CheckpointError, match="same classes in another order: class 0 is 'green' in the file, 'red'"):
        evaluate(cfg)


def test_fine_tuning_and_resume_refuse_another_order(detector, tmp_path) -> None:
    _, folder = detector
    trainer = DynTrainer(_cfg(folder, _renamed(folder, tmp_path / "other.pth", ORDER), OUTPUT_DIR=tmp_path / "run"))
    with pytest.raises(CheckpointError, match="in another order.*dyn-d2 surgery"):
        trainer.resume_or_load(False)
    trainer.checkpointer.metadata["classes"] = [*ORDER[:3], "pink"]
    trainer.iter = 0
    trainer.checkpointer.save("model_0000000", iteration=0)
    with pytest.raises(CheckpointError, match="has other classes: class 0 is 'green'"):
        DynTrainer(trainer.cfg).resume_or_load(True)


def test_a_start_from_unrelated_classes_is_said(detector, tmp_path, caplog) -> None:
    cfg, folder = detector
    model = build_model(cfg)
    checkpointer = DynCheckpointer(model)
    checkpointer.load(_renamed(folder, tmp_path / "other.pth", "abcd"))
    with caplog.at_level(logging.WARNING):
        require_same_classes(model, checkpointer.report, cfg.DATASETS.TRAIN, start=True)
    assert "starts as one for a, b, c, d" in caplog.text
    with pytest.raises(CheckpointError):
        require_same_classes(model, checkpointer.report, cfg.DATASETS.TRAIN)
    checkpointer.report.metadata["classes"] = list(CLASSES)
    require_same_classes(model, checkpointer.report, cfg.DATASETS.TRAIN)


@pytest.mark.parametrize("wrapper", ["", "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrapped_files(tmp_path, wrapper, prefix) -> None:
    weights = {prefix + "conv.weight": torch.ones(2), prefix + "conv.bias": torch.zeros(1)}
    torch.save({wrapper: weights, "epoch": 3} if wrapper else weights, tmp_path / "file.pth")
    data = read_checkpoint(str(tmp_path / "file.pth"))
    assert data["model"].keys() == {"conv.weight", "conv.bias"}
    assert data.keys() == ({"model", "epoch"} if wrapper else {"model"})


@pytest.mark.parametrize("depth", [18, 50])
def test_settings_of_torchvision(tmp_path, depth, caplog) -> None:
    network = torchvision.models.resnet18() if depth == 18 else torchvision.models.resnet50()
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "net.pth")
    out = 64 if depth == 18 else 256
    cfg = build_cfg("", task_opts("classifier", MODEL__RESNETS__DEPTH=depth, MODEL__RESNETS__RES2_OUT_CHANNELS=out))
    checkpointer = DynCheckpointer(build_model(cfg))
    checkpointer.load(str(tmp_path / "net.pth"))
    assert "backbone.res2.0.conv1.weight" in checkpointer.report.loaded
    with caplog.at_level(logging.WARNING):
        warn_of_settings(cfg, checkpointer.report)
    assert "INPUT.FORMAT RGB" in caplog.text and "MODEL.PIXEL_STD [58.395" in caplog.text
    assert ("STRIDE_IN_1X1 False" in caplog.text) == (depth == 50)
    for key, value in checkpointer.report.settings.items():
        cfg.merge_from_list([key, value])
    assert not differing_settings(cfg, checkpointer.report.settings)


def test_the_data_of_a_run_is_its_own(detector) -> None:
    """The same classes in the same order: nothing is said."""
    cfg, folder = detector
    trainer = DynTrainer(_cfg(folder, str(folder / "model_final.pth"), OUTPUT_DIR=folder / "fine"))
    trainer.resume_or_load(False)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == len(CLASSES)
