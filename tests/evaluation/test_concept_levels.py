"""Scores at the levels of a concept tree against a count by sets of pixels; ignored pixels, absent classes, errors."""

import json
import os

import numpy as np
import pytest
import torch
from two_processes import results_of_two

from dyn_d2.config import add_dyn_d2_config
from dyn_d2.data.semantic.label_maps import write_label_map
from dyn_d2.evaluation import ConceptLevelEvaluator, build_evaluator
from dyn_d2.evaluation.concept_levels import confusion, level_metrics
from dyn_d2.hierarchy import Hierarchy, HierarchyError, save_hierarchy

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators, SemSegEvaluator

NAME = "levels_test"
IGNORE = 200
CHILDREN = {"all": ["animal", "sky", "thing"], "animal": ["cat", "dog"], "dog": ["poodle", "terrier"], "thing": ["car"]}
# "beast" of the coarse set stands on an inner concept; nobody has seen a car.
LABELS = {"fine": {"sky": "sky", "poodle": "poodle", "cat": "cat", "terrier": "terrier", "car": "car"}}
TREE = Hierarchy(CHILDREN, LABELS)
CLASSES = list(LABELS["fine"])
ABOVE = {  # by hand: what each label counts as at each depth
    1: {"sky": "sky", "poodle": "animal", "cat": "animal", "terrier": "animal", "car": "thing"},
    2: {"sky": "sky", "poodle": "dog", "cat": "cat", "terrier": "dog", "car": "car"},
    3: {name: name for name in CLASSES},
}


@pytest.fixture
def images(tmp_path):
    """Records of three images and scores for them."""
    rng = np.random.default_rng(0)
    records, outputs = [], []
    for i, (height, width) in enumerate([(5, 7), (4, 4), (6, 3)]):
        truth = rng.choice([0, 1, 2, 3, IGNORE], (height, width)).astype(np.uint8)
        write_label_map(tmp_path / f"{i}.png", truth)
        records.append({"file_name": f"{i}.jpg", "sem_seg_file_name": str(tmp_path / f"{i}.png"), "image_id": i})
        outputs.append({"sem_seg": torch.rand(len(CLASSES), height, width)})
    return records, outputs


@pytest.fixture
def metadata(tmp_path, images):
    save_hierarchy(TREE, tmp_path / "tree.yaml")
    values = {"stuff_classes": CLASSES, "hierarchy": str(tmp_path / "tree.yaml"), "label_set": "fine"}
    values |= {"ignore_label": IGNORE, "evaluator_type": "sem_seg"}
    DatasetCatalog.register(NAME, lambda: images[0])
    MetadataCatalog.get(NAME).set(**values)
    yield values
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def _pixels(records, outputs):
    """(true name, predicted name) of every pixel that counts."""
    from PIL import Image

    for record, output in zip(records, outputs, strict=True):
        truth = np.array(Image.open(record["sem_seg_file_name"]))
        best = output["sem_seg"].argmax(0).numpy()
        for place in np.ndindex(truth.shape):
            if truth[place] != IGNORE:
                yield CLASSES[truth[place]], CLASSES[best[place]]


def _slow(pairs, rename=lambda name: name):
    """mIoU over the names that occur as truth, pixel accuracy, mean class accuracy."""
    pairs = [(rename(a), rename(b)) for a, b in pairs]
    names = sorted({a for a, _ in pairs})
    ious, accuracies = [], []
    for name in names:
        truth = {i for i, (a, _) in enumerate(pairs) if a == name}
        found = {i for i, (_, b) in enumerate(pairs) if b == name}
        ious.append(100 * len(truth & found) / len(truth | found))
        accuracies.append(100 * len(truth & found) / len(truth))
    return np.mean(ious), 100 * np.mean([a == b for a, b in pairs]), np.mean(accuracies)


def test_scores_are_those_of_counting(images, metadata, tmp_path):
    evaluator = ConceptLevelEvaluator(NAME, str(tmp_path))
    evaluator.process(*images)
    metrics = evaluator.evaluate()["levels"]
    pairs = list(_pixels(*images))
    expected = dict(zip(("mIoU", "pixel_accuracy", "class_accuracy"), _slow(pairs), strict=True))
    for depth, names in ABOVE.items():
        expected[f"mIoU-depth{depth}"], expected[f"pixel_accuracy-depth{depth}"], _ = _slow(pairs, names.get)
    assert metrics == pytest.approx(expected)
    assert metrics["mIoU-depth3"] == metrics["mIoU"]
    assert metrics["pixel_accuracy-depth1"] >= metrics["pixel_accuracy-depth2"] >= metrics["pixel_accuracy"]
    written = json.loads((tmp_path / f"{NAME}_levels.json").read_text())
    assert written["absent"] == ["car"] and set(written["IoU"]["depth1"]) == {"sky", "animal"}


def test_same_as_detectron2s_evaluator(images, metadata):
    theirs = SemSegEvaluator(NAME, distributed=False)
    ours = ConceptLevelEvaluator(NAME)
    for evaluator in (theirs, ours):
        evaluator.reset()
        evaluator.process(*images)
    known, found = theirs.evaluate()["sem_seg"], ours.evaluate()["levels"]
    names = {"mIoU": "mIoU", "pACC": "pixel_accuracy", "mACC": "class_accuracy"}
    assert {n: known[n] for n in names} == pytest.approx({n: found[names[n]] for n in names})


def test_coarse_labels_stay_themselves_below():
    tree = Hierarchy(CHILDREN, {"coarse": {"beast": "animal", "sky": "sky", "car": "car"}})
    levels = tree.by_depth(["animal", "sky", "car"])[1:]
    assert levels == [["animal", "sky", "thing"], ["animal", "sky", "car"]]
    metrics, _ = level_metrics(np.diag([3, 2, 1]), ["beast", "sky", "car"], levels)
    assert set(metrics.values()) == {100.0}


def test_build_evaluator_puts_both_side_by_side(images, metadata, tmp_path):
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    evaluator = build_evaluator(cfg, NAME)
    assert isinstance(evaluator, DatasetEvaluators)
    evaluator.reset()
    evaluator.process(*images)
    results = evaluator.evaluate()
    assert results["sem_seg"]["mIoU"] == pytest.approx(results["levels"]["mIoU"])
    for file in (f"{NAME}_levels.json", "sem_seg_predictions.json"):
        assert os.path.isfile(tmp_path / "inference" / file)


def _evaluate_half(rank: int, folder: str, records: list, metadata: dict, outputs: list) -> dict | None:
    """Process 0 has the first image, process 1 the others."""
    DatasetCatalog.register("levels_of_two", lambda: records)
    MetadataCatalog.get("levels_of_two").set(**metadata)
    evaluator = ConceptLevelEvaluator("levels_of_two", folder)
    for i, (given, output) in enumerate(zip(records, outputs, strict=True)):
        if (i > 0) == bool(rank):
            evaluator.process([given], [output])
    return evaluator.evaluate()


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(images, metadata, tmp_path):
    alone = ConceptLevelEvaluator(NAME)
    alone.process(*images)
    results = results_of_two(_evaluate_half, tmp_path, str(tmp_path), images[0], metadata, images[1])
    assert results[1] is None
    assert results[0]["levels"] == pytest.approx(alone.evaluate()["levels"])


def test_wrong_scores_labels_and_names(images, metadata, tmp_path):
    records, outputs = images
    evaluator = ConceptLevelEvaluator(NAME)
    with pytest.raises(ValueError, match="no labelled pixel"):
        evaluator.evaluate()
    with pytest.raises(ValueError, match="5 classes .* the model gives \\(4, 5, 7\\)"):
        evaluator.process(records[:1], [{"sem_seg": outputs[0]["sem_seg"][:4]}])
    write_label_map(records[0]["sem_seg_file_name"], np.full((5, 7), 9, np.uint8))
    with pytest.raises(ValueError, match="0.png holds 9: neither one of 5 classes .* nor the ignore label 200"):
        evaluator.process(records[:1], outputs[:1])
    MetadataCatalog.remove(NAME)
    MetadataCatalog.get(NAME).set(**metadata | {"stuff_classes": ["sky", "cow"]})
    with pytest.raises(HierarchyError, match="no concept: 'cow'"):
        ConceptLevelEvaluator(NAME)


def test_an_image_without_a_label_counts_nothing():
    nothing = confusion(torch.zeros(2, 3), torch.full((2, 3), 255), 4, 255)
    assert nothing.shape == (4, 4) and not nothing.any()
    assert not confusion(torch.zeros(0, 3), torch.zeros(0, 3), 4, 255).any()
