"""Training sets divided into a part to train on and a held-out one."""

import re

import pytest

from dyn_d2.data.classification import is_classification, require_files
from dyn_d2.data.fingerprint import data_fingerprint
from dyn_d2.data.parts import held_out_problem, register_parts, trained_problem

from detectron2.data import DatasetCatalog, MetadataCatalog


def _ids(name: str) -> list[int]:
    return [record["image_id"] for record in DatasetCatalog.get(name)]


def test_parts_divide_the_whole():
    fit, held_out = _ids("digits_train_fit"), _ids("digits_train_held_out")
    assert sorted(fit + held_out) == _ids("digits_train") and len(held_out) == 287
    assert fit == sorted(fit) and held_out != list(range(len(fit), len(fit) + len(held_out)))
    assert _ids("digits_train_fit") == fit
    assert is_classification("digits_train_fit") and MetadataCatalog.get("digits_train_fit").recipe == "digits"
    assert MetadataCatalog.get("digits_train_held_out").split == "held_out"


def test_a_part_of_coco_is_judged_by_its_own_records():
    metadata = MetadataCatalog.get("digit_scenes_train_held_out")
    assert metadata.get("json_file", None) is None and metadata.evaluator_type == "coco"


def test_missing_files_are_those_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="data_batch_1"):
        require_files("cifar10_train_fit")


def test_what_thresholds_must_not_be_chosen_on():
    assert held_out_problem("digits_train_held_out", ["digits_train_fit"], ["digits_test"]) == ""
    assert held_out_problem("digits_train_held_out", ["cifar10_train"], ["digits_train_held_out"]) == ""
    assert "is a test split" in held_out_problem("digits_test", ["digits_train_fit"], [])
    assert "is a test split" in held_out_problem("coco_2017_val", [], ["coco_2017_val"])
    parts = register_parts("digits_test")
    assert "is a part of digits_test, a test split" in held_out_problem(parts[1], ["digits_train_fit"], [])
    for catalog in (DatasetCatalog, MetadataCatalog):
        for part in parts:
            catalog.remove(part)
    for name, trained in (
        ("digits_train_fit", "digits_train_fit"),
        ("digits_train_held_out", "digits_train"),
        ("digits_train", "digits_train_fit"),
    ):
        assert "a model was trained on images of" in held_out_problem(name, [trained], [])
        assert "a model was trained on images of" in trained_problem(name, [trained])
    assert trained_problem("digits_train_held_out", ["digits_train_fit"]) == ""
    assert trained_problem("digits_test", ["digits_train"]) == ""  # what thresholds are judged by may be a test split


@pytest.fixture
def few():
    """A data set of three images, or of as many as are put into the list."""
    records = [{"image_id": number} for number in range(3)]
    DatasetCatalog.register("few", lambda: records)
    MetadataCatalog.get("few").set(evaluator_type="coco")
    yield records
    for name in {"few", "few_fit", "few_held_out"} & set(DatasetCatalog.list()):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_a_few_images_are_divided_too(few):
    names = ["few", *register_parts("few", 0.1)]
    assert [len(_ids(name)) for name in names] == [3, 2, 1]
    register_parts("few", 0.9)
    with pytest.raises(ValueError, match="0.9 of the 3 images of few held out leaves none to train on"):
        _ids("few_fit")


def test_a_part_of_another_division_may_have_been_trained_on(few):
    register_parts("few", 0.1)
    kept = {"few_fit": data_fingerprint("few_fit")}
    assert trained_problem("few_held_out", ["few_fit"], kept) == ""
    register_parts("few", 0.2)
    otherwise = r"since few_fit was trained on, few or its division has changed \(held out: 0.1 of the images -> 0.2 of"
    assert re.search(otherwise, trained_problem("few_held_out", ["few_fit"], kept))
    assert re.search(otherwise, held_out_problem("few_held_out", ["few_fit"], [], kept))
    assert trained_problem("few_held_out", ["few_fit"]) == ""  # a checkpoint that says nothing
    register_parts("few", 0.1, masks=True)
    assert "whose objects all have masks" in trained_problem("few_held_out", ["few_fit"], kept)
    register_parts("few", 0.1)
    few.append({"image_id": 3})
    assert "few or its division has changed (few: records" in trained_problem("few_held_out", ["few_fit"], kept)


def test_share_is_checked():
    with pytest.raises(ValueError, match="between 0 and 1"):
        register_parts("digits_train", 1.0)
