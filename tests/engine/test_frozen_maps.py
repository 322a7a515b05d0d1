"""ROI heads that learn from kept feature maps learn what they learn from computed ones."""

import json
import logging
from pathlib import Path

import pytest
import torch
from tiny_detection import CLASSES, save_detector, tiny_opts, train_recorded

from dyn_d2.config.derive import build_cfg
from dyn_d2.engine.feature_cache import CacheError
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.modeling.heads_alone import BEFORE_HEADS, HeadsAlone

FROZEN = list(BEFORE_HEADS)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder with model_final.pth, a detector without masks, and its images in data."""
    folder = tmp_path_factory.mktemp("base")
    save_detector(folder)
    return folder


def config(base: Path, output: Path, **more):
    keys = {
        "FEW_SHOT__BENCHMARK": "custom",
        "FEW_SHOT__STAGE": "joint",
        "FEATURE_CACHE__MODE": "on",
        "FEATURE_CACHE__DIR": output.parent / "maps",
        "INPUT__PARTIAL_MASKS__CLASSES": [CLASSES[0]],
        "MODEL__MASK_ON": True,
        "MODEL__FREEZE": FROZEN,
        "MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.0,
        "MODEL__ROI_MASK_HEAD__NAME": "PartialMaskHead",
        "MODEL__ROI_MASK_HEAD__CLS_AGNOSTIC_MASK": True,
        "MODEL__ROI_MASK_HEAD__CONV_DIM": 8,
        "MODEL__ROI_MASK_HEAD__NUM_CONV": 1,
        "MODEL__SHAPE_PROP__CONV_DIM": 8,
        "MODEL__SHAPE_PROP__NUM_CONV": 1,
        "MODEL__WEIGHTS": base / "model_final.pth",
        "SOLVER__MAX_ITER": 4,
        "SOLVER__STEPS": [],
    }
    return build_cfg("", tiny_opts(base / "data" / "instances.json", output, **{**keys, **more}))


def test_kept_maps_give_the_numbers_of_computed_ones(base, tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    computed, _ = train_recorded(config(base, tmp_path / "a" / "small", FEATURE_CACHE__GB=1e-6))
    assert "holds not even one entry" in caplog.text and "FEATURE_CACHE.GB" in caplog.text
    first, _ = train_recorded(config(base, tmp_path / "b" / "first"))
    caplog.clear()
    again, trainer = train_recorded(config(base, tmp_path / "b" / "again"))
    assert " 0 computed, 8 read" in caplog.text
    assert computed == first == again and len(first) == 4
    assert first[0].keys() == {"loss_cls", "loss_box_reg", "loss_mask"}
    assert isinstance(vars(trainer.checkpointer.model)["forward"], HeadsAlone)


def test_rows_of_other_heads_find_the_maps_of_the_first(base, tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    train_recorded(config(base, tmp_path / "plain", SOLVER__MAX_ITER=30))
    caplog.clear()
    more = {"MODEL__ROI_HEADS__NAME": "ShapePropROIHeads", "SOLVER__AMP__ENABLED": True, "SOLVER__MAX_ITER": 3}
    frozen = [*FROZEN, "roi_heads.box_head", "roi_heads.box_predictor"]
    losses, _ = train_recorded(config(base, tmp_path / "shapes", MODEL__FREEZE=frozen, **more))
    assert " 0 computed, 6 read" in caplog.text and {"loss_saliency", "loss_shape", "loss_mask"} <= losses[0].keys()
    caplog.clear()
    train_recorded(config(base, tmp_path / "other", MODEL__RPN__NMS_THRESH=0.6, **more))
    assert " 0 computed, 6 read" not in caplog.text


def test_evaluation_from_maps_finds_what_the_whole_model_finds(base, tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    found = []
    for mode in ("on", "on", "off"):
        cfg = config(base, tmp_path / mode, FEATURE_CACHE__MODE=mode)
        trainer = DynTrainer(cfg)
        trainer.resume_or_load(False)
        model = trainer.checkpointer.model
        torch.manual_seed(3)
        for parameter in model.roi_heads.mask_head.parameters():
            parameter.data.copy_(torch.randn(parameter.shape) * 0.05)
        DynTrainer.test(cfg, model)
        found.append(json.loads((Path(cfg.OUTPUT_DIR) / "inference" / "coco_instances_results.json").read_text()))
    assert "2 computed, 0 read" in caplog.text and "0 computed, 2 read" in caplog.text
    first, second, plain = (sorted(item["score"] for item in detections) for detections in found)
    assert first == second and len(first) > 10
    assert first == pytest.approx(plain, abs=2e-3)
    assert all(item["segmentation"]["counts"] for item in found[0])


@pytest.mark.parametrize(
    "more, reason",
    [
        ({"MODEL__FREEZE": ["backbone"]}, "parameters before the ROI heads learn, such as proposal_generator"),
        ({"INPUT__CROP__ENABLED": True}, "RandomCrop"),
        ({"VIS_PERIOD": 5}, "VIS_PERIOD"),
    ],
)
def test_where_maps_change_the_step_is_the_plain_one(base, tmp_path, more, reason, caplog) -> None:
    caplog.set_level(logging.INFO)
    trainer = DynTrainer(config(base, tmp_path / "out", FEATURE_CACHE__MODE="auto", **more))
    assert "forward" not in vars(trainer.checkpointer.model) and reason in caplog.text
    with pytest.raises(CacheError, match=reason):
        DynTrainer(config(base, tmp_path / "out", **more))
