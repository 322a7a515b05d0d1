"""Base and novel AP: equal to COCO's AP restricted to the group, independent of names, explained where undefined."""

import contextlib
import io
import json
import logging
import uuid

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dyn_d2.config import add_dyn_d2_config
from dyn_d2.evaluation import build_evaluator, group_means

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, BoxMode, Instances

CLASSES = ["ant", "bee", "cat", "dog", "elk"]
NOVEL = ["bee", "elk"]


@given(st.lists(st.one_of(st.floats(0, 100), st.just(float("nan"))), min_size=5, max_size=5))
def test_group_means_equal_a_slow_loop(values):
    result = group_means({"AP": np.array(values)}, CLASSES, {"b{}": ["ant", "cat", "dog"], "n{}": NOVEL})

    def mean(names):
        present = [v for n, v in zip(CLASSES, values, strict=True) if n in names and v == v]
        return sum(present) / len(present) if present else float("nan")

    for key, names in (("AP", CLASSES), ("bAP", ["ant", "cat", "dog"]), ("nAP", NOVEL)):
        assert result[key] == pytest.approx(mean(names), nan_ok=True)
    if result["bAP"] > 0 and result["nAP"] > 0:
        assert result["hAP"] == pytest.approx(2 / (1 / result["bAP"] + 1 / result["nAP"]))


def test_groups_that_were_not_evaluated_have_no_entry():
    result = group_means({"AP": np.array([10.0, 20.0])}, ["ant", "cat"], {"b{}": ["ant", "cat"], "n{}": NOVEL})
    assert result == {"AP": 15.0, "bAP": 15.0}


def _boxes(rng, n):
    corner = rng.uniform(0, 60, (n, 2))
    return np.hstack([corner, corner + rng.uniform(4, 40, (n, 2))])


def _ground_truth(rng, images, ids):
    annotations = [
        {"image_id": image, "category_id": int(rng.choice(ids)), "bbox": [*box[:2], *(box[2:] - box[:2])]}
        for image in range(1, images + 1)
        for box in _boxes(rng, 6).tolist()
        for box in [np.array(box)]
    ]
    for number, annotation in enumerate(annotations, 1):
        annotation["bbox"] = [float(v) for v in annotation["bbox"]]
        annotation |= {"id": number, "area": annotation["bbox"][2] * annotation["bbox"][3], "iscrowd": 0}
    return annotations


def _detections(rng, annotations, image, classes):
    """The truth, shaken, with some wrong classes and some boxes of nothing."""
    truth = [a for a in annotations if a["image_id"] == image]
    boxes = BoxMode.convert(np.array([a["bbox"] for a in truth]), BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    boxes = np.vstack([boxes + rng.normal(0, 2, boxes.shape), _boxes(rng, 3)])
    labels = [a["category_id"] // 10 - 1 if rng.random() < 0.8 else rng.integers(classes) for a in truth]
    labels += list(rng.integers(classes, size=3))
    found = Instances((100, 100))
    found.pred_boxes, found.scores = Boxes(torch.as_tensor(boxes)), torch.as_tensor(rng.random(len(boxes)))
    found.pred_classes = torch.as_tensor(np.array(labels, dtype=np.int64))
    return found


@pytest.fixture
def cfg(tmp_path):
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    return cfg


def _register(tmp_path, annotations, images, ids=(10, 20, 30, 40, 50), **metadata):
    categories = [{"id": number, "name": name} for number, name in zip(ids, CLASSES, strict=True)]
    content = {
        "info": {},
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 100, "width": 100} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": categories,
    }
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(content))
    name = f"set_{uuid.uuid4().hex}"
    register_coco_instances(name, metadata, str(file), str(tmp_path))
    MetadataCatalog.get(name).thing_classes = CLASSES
    MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id = {number: k for k, number in enumerate(ids)}
    return name, file


def _evaluate(evaluator, found):
    evaluator.reset()
    for image, instances in found.items():
        evaluator.process([{"image_id": image, "file_name": f"{image}.jpg"}], [{"instances": instances}])
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluator.evaluate()


@pytest.mark.parametrize("ids", [(10, 20, 30, 40, 50), (7, 3, 9, 2, 5)], ids=["ids in order", "ids in no order"])
def test_coco_groups_equal_cocoeval_restricted_to_the_group(tmp_path, cfg, ids):
    rng = np.random.default_rng(0)
    annotations = _ground_truth(rng, 8, [10, 20, 30, 40, 50])
    found = {image: _detections(rng, annotations, image, 5) for image in range(1, 9)}
    for annotation in annotations:
        annotation["category_id"] = ids[annotation["category_id"] // 10 - 1]
    base = [name for name in CLASSES if name not in NOVEL]
    name, file = _register(tmp_path, annotations, 8, ids, base_classes=base, novel_classes=NOVEL)
    result = _evaluate(build_evaluator(cfg, name), found)["bbox"]

    results_file = tmp_path / "out" / "inference" / "coco_instances_results.json"
    parts = {"": ids, "b": [ids[0], ids[2], ids[3]], "n": [ids[1], ids[4]]}
    parts |= {f"AP-{name}": [number] for name, number in zip(CLASSES, ids, strict=True)}
    for prefix, wanted in parts.items():
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(file))
            run = COCOeval(truth, truth.loadRes(str(results_file)), "bbox")
            run.params.catIds = list(wanted)
            run.evaluate(), run.accumulate(), run.summarize()
        if prefix.startswith("AP-"):
            assert result[prefix] == pytest.approx(100 * run.stats[0], abs=1e-6)
            continue
        for metric, value in zip(["AP", "AP50", "AP75", "APs", "APm", "APl"], run.stats[:6], strict=True):
            expected = 100 * value if value >= 0 else float("nan")
            assert result[prefix + metric] == pytest.approx(expected, abs=1e-6, nan_ok=True), prefix + metric
        recalls = zip(["AR1", "AR10", "AR100", "ARs", "ARm", "ARl"], run.stats[6:], strict=True)
        for metric, value in recalls:
            expected = 100 * value if value >= 0 else float("nan")
            assert result[prefix + metric] == pytest.approx(expected, abs=1e-6, nan_ok=True), prefix + metric
    assert result["nAR1"] < result["nAR100"]
    assert 0 < result["nAP"] < 100 and "AP-elk" in result


def test_no_detection_is_zero_and_a_class_without_truth_is_named(tmp_path, cfg, caplog):
    annotations = _ground_truth(np.random.default_rng(1), 2, [10, 20])
    name, _ = _register(tmp_path, annotations, 2, base_classes=["ant", "cat", "dog"], novel_classes=NOVEL)
    with caplog.at_level(logging.INFO, logger="dyn_d2"):
        logging.getLogger("dyn_d2").propagate = True
        result = _evaluate(build_evaluator(cfg, name), {1: Instances((100, 100), pred_boxes=Boxes(torch.zeros(0, 4)),
                           scores=torch.zeros(0), pred_classes=torch.zeros(0, dtype=torch.int64))})["bbox"]  # fmt: skip
    assert result["AP"] == result["bAP"] == result["nAP"] == 0 and np.isnan(result["AP-cat"])
    assert "3 of 5 classes have no ground truth" in caplog.text and "cat, dog, elk" in caplog.text


def test_the_name_of_the_data_set_means_nothing(tmp_path, cfg):
    rng = np.random.default_rng(2)
    annotations = _ground_truth(rng, 3, [10, 20, 30, 40, 50])
    found = {image: _detections(np.random.default_rng(3), annotations, image, 5) for image in (1, 2, 3)}
    groups = {"base_classes": ["ant", "cat", "dog"], "novel_classes": NOVEL}
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    first = _evaluate(build_evaluator(cfg, _register(tmp_path / "a", annotations, 3, **groups)[0]), found)["bbox"]
    second = _evaluate(build_evaluator(cfg, _register(tmp_path / "b", annotations, 3, **groups)[0]), found)["bbox"]
    assert first == pytest.approx(second, nan_ok=True)


def test_unknown_evaluator_type_names_the_remedy(cfg):
    name = f"set_{uuid.uuid4().hex}"
    MetadataCatalog.get(name).evaluator_type = "kitti"
    with pytest.raises(ValueError, match="kitti.*evaluator_type to one of coco"):
        build_evaluator(cfg, name)


_OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
    "<ymax>{}</ymax></bndbox><pose>x</pose><truncated>0</truncated></object>"
)


def _voc(tmp_path, objects):
    """objects: image -> [(class, difficult, xmin, ymin, xmax, ymax)]"""
    (tmp_path / "Annotations").mkdir(), (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    for image, rows in objects.items():
        xml = "".join(_OBJECT.format(*row) for row in rows)
        (tmp_path / "Annotations" / f"{image}.xml").write_text(f"<annotation>{xml}</annotation>")
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("\n".join(objects))
    name = f"set_{uuid.uuid4().hex}"
    MetadataCatalog.get(name).set(
        thing_classes=["ant", "bee", "cat"], base_classes=["ant", "cat"], novel_classes=["bee"],
        dirname=str(tmp_path), year=2007, split="test", evaluator_type="pascal_voc",
    )  # fmt: skip
    return name


def test_voc_groups_by_hand(tmp_path, cfg):
    """ant: one of two found (11-point AP 6/11); bee: found exactly; cat: one difficult object, no truth."""
    name = _voc(
        tmp_path,
        {"a": [("ant", 0, 1, 1, 50, 50), ("ant", 0, 60, 60, 90, 90)], "b": [("bee", 0, 11, 11, 40, 40),
         ("cat", 1, 1, 1, 9, 9)]},
    )  # fmt: skip
    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    for image, box, label in (("a", [0.0, 0, 50, 50], 0), ("b", [10.0, 10, 40, 40], 1)):
        found = Instances((100, 100), pred_boxes=Boxes(torch.tensor([box])), scores=torch.tensor([0.9]))
        found.pred_classes = torch.tensor([label])
        evaluator.process([{"image_id": image}], [{"instances": found}])
    result = evaluator.evaluate()["bbox"]
    assert result["bAP50"] == pytest.approx(100 * 6 / 11) and result["nAP50"] == pytest.approx(100)
    assert result["AP50"] == pytest.approx((100 + 100 * 6 / 11) / 2) and np.isnan(result["AP-cat"])


def test_voc_detections_are_written_and_scores_have_six_decimals(tmp_path, cfg):
    """Two detections whose scores differ in the fifth decimal: the better one, which is right, counts first."""
    name = _voc(tmp_path, {"a": [("ant", 0, 1, 1, 50, 50)]})
    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    boxes = torch.tensor([[60.0, 60, 90, 90], [0.0, 0, 50, 50.04]])
    found = Instances((100, 100), pred_boxes=Boxes(boxes), scores=torch.tensor([0.98761, 0.98764]))
    found.pred_classes = torch.tensor([0, 0])
    evaluator.process([{"image_id": "a"}], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP50-ant"] == pytest.approx(100)
    folder = tmp_path / "out" / "inference" / "voc_detections"
    lines = (folder / "comp4_det_test_ant.txt").read_text().splitlines()
    assert lines == ["a 0.987610 61.0 61.0 90.0 90.0", "a 0.987640 1.0 1.0 50.0 50.0"]
    assert (folder / "comp4_det_test_bee.txt").read_text() == ""


@pytest.mark.parametrize("ids", [(1, 2, 3), (3, 1, 2)], ids=["ids in order", "ids in no order"])
def test_lvis_groups_agree_with_its_own_rare_ap(tmp_path, cfg, ids):
    rng = np.random.default_rng(5)
    annotations = _ground_truth(rng, 6, [1, 2, 3])
    for annotation in annotations:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    frequency = {1: "f", 2: "r", 3: "c"}
    content = {
        "images": [
            {"id": i, "height": 100, "width": 100, "not_exhaustive_category_ids": [], "neg_category_ids": []}
            for i in range(1, 7)
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": CLASSES[i - 1], "frequency": f} for i, f in frequency.items()],
    }
    file = tmp_path / "lvis.json"
    file.write_text(json.dumps(content))
    name = f"set_{uuid.uuid4().hex}"
    MetadataCatalog.get(name).set(
        json_file=str(file), image_root=str(tmp_path), evaluator_type="lvis",
        thing_classes=[CLASSES[i - 1] for i in ids], base_classes=["ant", "cat"], novel_classes=["bee"],
        thing_dataset_id_to_contiguous_id={number: k for k, number in enumerate(ids)},
    )  # fmt: skip
    by_tens = [{**a, "category_id": 10 * (ids.index(a["category_id"]) + 1)} for a in annotations]
    found = {image: _detections(rng, by_tens, image, 3) for image in range(1, 7)}
    result = _evaluate(build_evaluator(cfg, name), found)["bbox"]
    assert result["nAP"] == pytest.approx(result["APr"], abs=1e-6) and result["nAP"] > 0
    assert result["bAP"] == pytest.approx((result["APc"] + result["APf"]) / 2, abs=1e-6)
    assert "float" not in vars(np), "the alias that lvis needs must not stay behind"


def test_a_novel_class_that_is_never_found_is_explained(caplog):
    from dyn_d2.data.few_shot.sources import forget
    from dyn_d2.evaluation.class_groups import group_results

    from detectron2.data import DatasetCatalog

    box = {"category_id": 1, "bbox": [0, 0, 12, 12], "bbox_mode": BoxMode.XYXY_ABS}
    record = {"file_name": "a.png", "image_id": 1, "height": 64, "width": 64, "annotations": [box]}
    DatasetCatalog.register("never_found", lambda: [record])
    metadata = MetadataCatalog.get("never_found")
    metadata.set(thing_classes=["ant", "bee"], novel_classes=["bee"], few_shot={"shots": 3})
    try:
        with caplog.at_level("WARNING", "dyn_d2"):
            group_results({"AP": np.array([0.0, 7.0])}, metadata, {"n{}": ["bee"]}, (), "bbox")
            assert not caplog.text
            group_results({"AP": np.array([7.0, 0.0])}, metadata, {"n{}": ["bee"]}, (), "bbox")
            assert "base classes:" not in caplog.text
            metadata.base_classes = ["ant"]
            group_results({"AP": np.array([0.0, 0.0])}, metadata, {"n{}": ["bee"]}, (), "bbox")
    finally:
        forget("never_found")
    for part in (
        "AP is 0 for the novel classes bee",
        "so it is for the base classes: their training was too short",
        "3 examples",
        "bee 12 pixels",
        "SHOTS_UNIT whole_image",
        "FEW_SHOT.METHOD ft_heads",
    ):
        assert part in caplog.text
