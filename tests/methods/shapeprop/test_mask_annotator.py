"""Progressive Mask R-CNN on a toy: the annotator predicts masks of given boxes, which then are trained on."""

import json

import pycocotools.mask as mask_util
import pytest
import torch
from tiny_detection import tiny_opts, write_boxes

from dyn_d2.config.derive import build_cfg
from dyn_d2.data.check import check_coco_json
from dyn_d2.data.resumable import build_resumable_train_loader
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.methods.shapeprop.annotator import objects_without_masks, predict_masks
from dyn_d2.methods.shapeprop.cli import pseudo_masks
from dyn_d2.utils.errors import UserError

from detectron2.data import DatasetCatalog

MASKS = {
    "MODEL.MASK_ON": True,
    "MODEL.ROI_MASK_HEAD.NAME": "PartialMaskHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True,
    "MODEL.SHAPE_PROP.CONV_DIM": 8,
    "FEW_SHOT.STAGE": "joint",
    "INPUT.PARTIAL_MASKS.CLASSES": ["red", "green"],
}


@pytest.fixture(params=["DynROIHeads", "ShapePropROIHeads"])
def run(tmp_path, request):
    """Config, and an untrained checkpoint whose masks fill their boxes."""
    opts = tiny_opts(write_boxes(tmp_path / "data"), tmp_path / "out", **MASKS, MODEL__ROI_HEADS__NAME=request.param)
    cfg = build_cfg("", opts)
    model = DynTrainer.build_model(cfg)
    torch.nn.init.constant_(model.roi_heads.mask_head.predictor.bias, 5.0)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    return tmp_path, opts


def test_masks_of_given_boxes_are_predicted_and_trained_on(run, monkeypatch, caplog) -> None:
    folder, opts = run
    (folder / "empty.yaml").write_text("VERSION: 2\n")
    output, weights = folder / "masks.json", folder / "model.pth"
    tool = ["--config-file", str(folder / "empty.yaml"), "--weights", str(weights), "--output", str(output)]
    monkeypatch.setattr(pseudo_masks, "setup_logger", lambda **_: None)  # takes the log away from caplog, for good
    assert pseudo_masks.main([*tool, *opts]) == 0

    cfg = build_cfg("", opts)
    truth = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    lacking = sorted((r["image_id"], *a["bbox"]) for r in truth for a in r["annotations"] if a["category_id"] >= 2)
    content = json.loads(output.read_text())
    assert sorted((a["image_id"], *a["bbox"]) for a in content["annotations"]) == lacking
    assert check_coco_json(str(output), str(folder / "data" / "images")).ok
    for annotation in content["annotations"]:
        x, y, w, h = map(int, annotation["bbox"])
        mask = mask_util.decode(annotation["segmentation"])
        assert mask[y : y + h, x : x + w].all() and mask.sum() == w * h == annotation["area"]

    cfg.merge_from_list(["INPUT.PARTIAL_MASKS.PSEUDO", str(output)])
    caplog.set_level("INFO")
    records = list(build_resumable_train_loader(cfg).dataset.records)
    assert f"{len(lacking)} of these masks are pseudo-masks" in caplog.text
    flags = {(a["category_id"] >= 2, a.get("pseudo_mask", False)) for r in records for a in r["annotations"]}
    assert flags == {(False, False), (True, True)}
    # What a second annotator is asked for does not depend on the first one's masks.
    assert sum(len(r["annotations"]) for r in objects_without_masks(cfg)) == len(lacking)


def test_what_cannot_be_annotated_is_named(run) -> None:
    _, opts = run
    with pytest.raises(UserError, match="every object of custom_split1_joint_train has a mask"):
        objects_without_masks(build_cfg("", [*opts, "INPUT.PARTIAL_MASKS.CLASSES", "[]"]))
    with pytest.raises(UserError, match="MASK_ON is False"):
        objects_without_masks(build_cfg("", [*opts, "MODEL.MASK_ON", "False"]))
    with pytest.raises(UserError, match="GeneralizedRCNN cannot predict masks of given boxes"):
        predict_masks(build_cfg("", opts), torch.nn.Linear(1, 1), [])


def test_boxes_that_vanish_and_empty_masks_are_left_out(run) -> None:
    _, opts = run
    cfg = build_cfg("", opts)
    model = DynTrainer.build_model(cfg)
    record = objects_without_masks(cfg)[0]
    width = record["width"]
    first = record["annotations"][0]
    record["annotations"] = [first, {**first, "bbox": [width + 5, 3, 10, 10]}]
    for bias, found in ((5.0, 1), (-5.0, 0)):
        torch.nn.init.constant_(model.roi_heads.mask_head.predictor.bias, bias)
        assert len(predict_masks(cfg, model, [record])["annotations"]) == found
