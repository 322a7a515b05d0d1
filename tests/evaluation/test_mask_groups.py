"""AP of classes with and without masks: equal to COCO's evaluation of each class, and only where classes differ."""

import contextlib
import io
import logging

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny_detection import CLASSES, write_boxes

from dyn_d2.config import add_dyn_d2_config
from dyn_d2.evaluation import GroupedCOCOEvaluator, build_evaluator
from dyn_d2.evaluation.checked import CheckedCOCOEvaluator
from dyn_d2.evaluation.partial_masks import mask_groups

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, BoxMode, Instances

MASKED = ["red", "blue"]


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    cfg.OUTPUT_DIR, cfg.MODEL.MASK_ON = str(tmp_path / "out"), True
    cfg.INPUT.PARTIAL_MASKS.CLASSES = MASKED
    return cfg


@pytest.fixture
def boxes(tmp_path):
    file = write_boxes(tmp_path / "data", 6)
    name = f"set_{tmp_path.name}"
    register_coco_instances(name, {}, str(file), str(file.parent / "images"))
    records = DatasetCatalog.get(name)
    yield name, file, records
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def detections(record: dict, seed: int) -> Instances:
    """The truth, shaken, with some wrong classes; masks are the boxes."""
    rng = np.random.default_rng(seed)
    size = record["height"], record["width"]
    corners = np.array([BoxMode.convert(a["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for a in record["annotations"]])
    corners = torch.from_numpy((corners + rng.integers(-2, 3, corners.shape)).clip(0, 48)).float()
    labels = [a["category_id"] if rng.random() < 0.8 else int(rng.integers(4)) for a in record["annotations"]]
    found = Instances(size, pred_boxes=Boxes(corners), scores=torch.from_numpy(rng.random(len(labels))))
    found.pred_classes = torch.tensor(labels)
    found.pred_masks = torch.zeros(len(labels), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(found.pred_masks, corners.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    return found


def evaluate(evaluator, records, found) -> dict:
    evaluator.reset()
    for record, instances in zip(records, found, strict=True):
        evaluator.process([record], [{"instances": instances}])
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluator.evaluate()


@pytest.mark.parametrize(("task", "iou_type"), [("segm", "segm"), ("bbox", "bbox")])
def test_means_of_cocos_ap_of_each_class(boxes, cfg, caplog, tmp_path, task, iou_type) -> None:
    name, file, records = boxes
    with caplog.at_level(logging.INFO, logger="dyn_d2"):
        logging.getLogger("dyn_d2").propagate = True
        found = [detections(record, i) for i, record in enumerate(records)]
        result = evaluate(build_evaluator(cfg, name), records, found)[task]
    assert "| without masks |" in caplog.text
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        predicted = truth.loadRes(str(tmp_path / "out" / "inference" / "coco_instances_results.json"))
        single = []
        for category in range(1, len(CLASSES) + 1):
            run = COCOeval(truth, predicted, iou_type)
            run.params.catIds = [category]
            run.evaluate(), run.accumulate(), run.summarize()
            single.append(np.where(run.stats[:6] < 0, np.nan, 100 * run.stats[:6]))
    for suffix, rows in (("", [0, 1, 2, 3]), ("_with_masks", [0, 2]), ("_without_masks", [1, 3])):
        expected = np.array(single)[rows]
        for metric, values in zip(["AP", "AP50", "AP75", "APs", "APm", "APl"], expected.T, strict=True):
            mean = np.nanmean(values) if np.isfinite(values).any() else np.nan
            if task == "bbox" or metric in ("AP", "AP50", "AP75"):  # loadRes counts another area than Detectron2
                assert result[metric + suffix] == pytest.approx(mean, abs=1e-6, nan_ok=True), metric + suffix
    assert 0 < result["AP_without_masks"] < 100 and "AP-yellow" in result


def test_no_detection_is_zero_for_masks_too(boxes, cfg) -> None:
    name, _, records = boxes
    nothing = [detections(record, 0)[:0] for record in records]
    result = evaluate(build_evaluator(cfg, name), records, nothing)
    assert result["segm"]["AP_without_masks"] == result["segm"]["AP50_with_masks"] == result["bbox"]["AP"] == 0


def test_where_classes_do_not_differ_nothing_is_split(boxes, cfg) -> None:
    metadata = MetadataCatalog.get(boxes[0])
    assert mask_groups(cfg, metadata) == {"{}_with_masks": MASKED, "{}_without_masks": ["green", "yellow"]}
    cfg.INPUT.PARTIAL_MASKS.CLASSES = list(CLASSES)
    assert mask_groups(cfg, metadata) == {}
    cfg.INPUT.PARTIAL_MASKS.CLASSES = []
    assert type(build_evaluator(cfg, boxes[0])) is CheckedCOCOEvaluator
    cfg.TEST.MASKED_CLASSES = MASKED  # an oracle, judged on the classes of another model
    assert type(build_evaluator(cfg, boxes[0])) is GroupedCOCOEvaluator
    cfg.MODEL.MASK_ON = False
    assert mask_groups(cfg, metadata) == {}
    cfg.MODEL.MASK_ON, cfg.TEST.MASKED_CLASSES = True, ["rod"]
    with pytest.raises(ValueError, match="TEST.MASKED_CLASSES names 'rod', .*did you mean 'red'"):
        mask_groups(cfg, metadata)


def test_classes_of_other_few_shot_stages_may_be_named(cfg) -> None:
    metadata = MetadataCatalog.get("stages_of_colours")
    try:
        metadata.set(base_classes=MASKED, novel_classes=["green", "yellow"], thing_classes=["green", "yellow"])
        assert mask_groups(cfg, metadata) == {}  # none of the novel classes has masks
        cfg.INPUT.PARTIAL_MASKS.CLASSES = [*MASKED, "yellow"]
        assert mask_groups(cfg, metadata) == {"{}_with_masks": ["yellow"], "{}_without_masks": ["green"]}
        cfg.INPUT.PARTIAL_MASKS.CLASSES = ["rod"]
        with pytest.raises(ValueError, match="INPUT.PARTIAL_MASKS.CLASSES names 'rod', .*did you mean 'red'"):
            mask_groups(cfg, metadata)
    finally:
        MetadataCatalog.remove("stages_of_colours")


def test_base_and_novel_classes_beside_them(boxes, cfg) -> None:
    name, _, records = boxes
    MetadataCatalog.get(name).set(base_classes=["red", "green", "blue"], novel_classes=["yellow"])
    found = [detections(record, i) for i, record in enumerate(records)]
    result = evaluate(build_evaluator(cfg, name), records, found)["segm"]
    assert result["nAP"] == result["AP-yellow"]
    assert result["AP_without_masks"] == pytest.approx((result["AP-green"] + result["AP-yellow"]) / 2)
    assert {"bAP", "hAP"} <= result.keys()


def test_a_json_that_nobody_has_read_yet_has_its_groups(cfg, boxes):
    """Names of classes come with the first reading of a json, which an evaluation may be."""
    _, file, _ = boxes
    register_coco_instances("unread", {}, str(file), str(file.parent / "images"))
    try:
        assert set(mask_groups(cfg, MetadataCatalog.get("unread"))) == {"{}_with_masks", "{}_without_masks"}
    finally:
        DatasetCatalog.remove("unread")
        MetadataCatalog.remove("unread")
