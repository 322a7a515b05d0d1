"""Data sets with descriptions: each published format read from tiny files, and what is said of bad ones."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from described_files import CLASSES, FakeH5, write_compositions, write_custom, write_low_shot, write_proposed_split

from dyn_d2.config.derive import build_cfg
from dyn_d2.data.check import check_dataset
from dyn_d2.data.classification import ensure_classes, has_labels, is_classification
from dyn_d2.methods.tafe_net.data import (
    DescribedMapper,
    DescribedSet,
    Part,
    class_table,
    described_set,
    read_class_vectors,
)
from dyn_d2.methods.tafe_net.data.digits import ATTRIBUTES, UNSEEN, attribute_matrix

from detectron2.data import DatasetCatalog, MetadataCatalog

TAFE = ["MODEL.META_ARCHITECTURE", "TAFENet"]


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def labels_of(name: str) -> list[int]:
    return [record["label"] for record in DatasetCatalog.get(name)]


def test_digits_are_described_and_partly_unseen() -> None:
    matrix = attribute_matrix()
    assert matrix.shape == (10, len(ATTRIBUTES)) and len(np.unique(matrix, axis=0)) == 10
    for split, unseen in UNSEEN.items():
        data = described_set(f"digit_attributes_{split}_train")
        assert data.unseen.tolist() == [int(digit) for digit in unseen] and data.feature_shape == (1, 8, 8)
        assert set(labels_of(f"digit_attributes_{split}_train")) == set(range(10)) - set(data.unseen.tolist())
        assert set(labels_of(f"digit_attributes_{split}_test")) == set(range(10))
        # What an unseen class looks like has to be known from others.
        for attribute in np.flatnonzero(matrix[data.unseen].any(0)) if split != "tune" else ():
            assert matrix[data.seen, attribute].any(), list(ATTRIBUTES)[attribute]
    record = DatasetCatalog.get("digit_attributes_1_test")[0]
    assert 0 <= record["feature"].min() and record["feature"].max() <= 1 and record["image_id"] == 0
    reported = "".join(unseen for split, unseen in UNSEEN.items() if split != "tune")
    assert len(set(reported)) == len(reported) and not set(reported) & set(UNSEEN["tune"])


def test_numbers_are_described_by_their_digits() -> None:
    data = described_set("number_attributes_1_train")
    assert len(data.classes) == 100 and data.classes[7] == "07" and data.feature_shape == (1, 8, 16)
    assert data.unseen.tolist()[:4] == [1, 6, 12, 17] and len(data.unseen) == 20
    for place in (data.seen // 10, data.seen % 10):
        assert np.bincount(place).tolist() == [8] * 10
    matrix = attribute_matrix()
    assert np.array_equal(data.descriptions[37], np.concatenate([matrix[3], matrix[7]]))
    assert len(labels_of("number_attributes_1_train")) == 3200 and len(labels_of("number_attributes_1_test")) == 1000
    digits = {record["image"][..., 0].tobytes(): record["label"] for record in DatasetCatalog.get("digits_test")}
    for record in DatasetCatalog.get("number_attributes_1_test")[::50]:
        halves = np.round(record["feature"][0] * 255).astype(np.uint8).reshape(8, 2, 8).swapaxes(0, 1)
        assert [digits[half.tobytes()] for half in halves] == list(divmod(record["label"], 10))


@pytest.mark.parametrize(("name", "folder"), [("sun", "SUN"), ("cub", "CUB"), ("awa1", "AWA1"), ("apy", "APY")])
def test_proposed_splits(root, name, folder) -> None:
    x = write_proposed_split(root / "xlsa17" / "data" / folder)
    data = described_set(f"{name}_zero_shot_test")
    assert data.classes == CLASSES and data.seen.tolist() == [0, 1, 2] and data.unseen.tolist() == [3, 4]
    assert data.descriptions[1].tolist() == [1, 6, 11]  # original_att, not att
    train, test = DatasetCatalog.get(f"{name}_zero_shot_train"), DatasetCatalog.get(f"{name}_zero_shot_test")
    assert np.allclose([record["feature"] for record in train], x[[0, 2, 4, 5]])
    assert [record["label"] for record in test] == [0, 1, 3, 3, 4, 4]
    assert np.allclose(test[0]["feature"], x[1]) and test[0]["feature"].dtype == np.float32
    metadata = MetadataCatalog.get(f"{name}_zero_shot_test")
    assert metadata.evaluator_type == "zero_shot" and has_labels(f"{name}_zero_shot_test")
    assert not is_classification(f"{name}_zero_shot_test")


def test_settings_can_be_chosen_without_the_test_images(root) -> None:
    write_proposed_split(root / "xlsa17/data/AWA2", original_att=None)
    data = described_set("awa2_zero_shot_tune_test")
    assert data.seen.tolist() == [0, 1] and data.unseen.tolist() == [2] and data.candidates.tolist() == [0, 1, 2]
    assert not data.descriptions.any()  # att, where there is no original_att


def test_broken_mat_files(root) -> None:
    folder = root / "xlsa17/data/AWA2"
    with pytest.raises(
        FileNotFoundError, match=r"res101\.mat, .*att_splits\.mat not found.*DETECTRON2_DATASETS.*xlsa17"
    ):
        described_set("awa2_zero_shot_train")
    for changes, message in (
        ({"trainval_loc": None}, "has no trainval_loc"),
        ({"original_att": None, "att": None}, "neither original_att nor att"),
        ({"trainval_loc": np.array([[1], [3], [7]])}, "dog is among the unseen classes"),
        ({"trainval_loc": np.array([[1], [99]])}, "names image 99"),
        ({"original_att": np.full((3, 5), np.nan)}, "description of class ant has NaN"),
    ):
        write_proposed_split(folder, **changes)
        with pytest.raises(ValueError, match=message):
            described_set("awa2_zero_shot_train")
    write_proposed_split(folder)
    (folder / "res101.mat").write_bytes(b"nonsense" * 100)
    with pytest.raises(ValueError, match=r"res101\.mat is no \.mat file"):
        described_set("awa2_zero_shot_train")


def test_compositions(root) -> None:
    x = write_compositions(root / "compositional-zs" / "mit-states")
    data = described_set("mit_states_resnet18_train")
    assert data.classes == ["red car", "old wine", "red t-shirt", "old car", "red wine"]
    assert data.candidates.tolist() == data.unseen.tolist() == [3, 4]
    assert data.descriptions[0].tolist() == [1, -1, 3, -3]
    assert data.descriptions[2].tolist() == [1, -1, 6, -6]  # the mean of "t" and "shirt"
    assert labels_of("mit_states_resnet18_train") == [0, 1, 2, 0, 1, 2]
    test = DatasetCatalog.get("mit_states_resnet18_test")
    assert [record["label"] for record in test] == [3, 4, 3, 4]
    assert np.allclose([record["feature"] for record in test], x[[3, 4, 9, 10]])


def test_broken_compositions(root) -> None:
    folder = root / "compositional-zs" / "mit-states"
    with pytest.raises(FileNotFoundError, match=r"resnet101_features\.t7.*github.com/ucbdrive/tafe-net.*glove"):
        described_set("mit_states_resnet101_train")
    lists = folder / "compositional-split"
    for name, text, message in (
        ("test_pairs.txt", "old car\nred car\n", "red car is in train_pairs.txt too"),
        ("test_pairs.txt", "old car red\n", "old car red is no line of 2 words"),
        ("train_pairs.txt", "", "an empty file is no line"),
        ("test_pairs.txt", "blue moon\n", "no vector of blue, moon"),
    ):
        write_compositions(folder)
        (lists / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            described_set("mit_states_resnet18_train")
    write_compositions(folder)
    torch.save([{"image": "x"}], folder / "metadata.t7")
    with pytest.raises(ValueError, match="do not fit each other"):
        described_set("mit_states_resnet18_train")
    write_compositions(folder)
    (folder / "glove" / "glove.6B.300d.txt").write_text("red one\n")
    with pytest.raises(ValueError, match="the line of 'red' is no word with its numbers"):
        described_set("mit_states_resnet18_train")


def test_low_shot_imagenet(root, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", SimpleNamespace(File=FakeH5))
    x = write_low_shot(root / "low_shot_imagenet")
    data = described_set("imagenet_low_shot_2_exp1_train")
    assert data.seen.tolist() == [0, 1, 2, 3] and data.candidates.tolist() == [2, 3, 6, 7]
    assert data.unseen.tolist() == [6, 7] and data.shots == 2
    assert np.allclose(data.descriptions[3], x[9:12].mean(0)) and np.allclose(data.descriptions[6], x[[20, 18]].mean(0))
    assert labels_of("imagenet_low_shot_2_exp1_test") == [2, 3, 6, 7]
    tune = described_set("imagenet_low_shot_1_exp1_tune_test")
    assert tune.candidates.tolist() == [0, 1, 4, 5] and np.allclose(tune.descriptions[4], x[14])
    mapper = DescribedMapper("imagenet_low_shot_1_exp1_train", True)
    record = DatasetCatalog.get("imagenet_low_shot_1_exp1_train")[4]
    drawn = {tuple(mapper(record)["task"].tolist()) for _ in range(30)}
    assert drawn == {tuple(x[3].tolist()), tuple(x[5].tolist())}  # of its class, but not the image itself
    assert "task" not in DescribedMapper("imagenet_low_shot_1_exp1_test", False)(record)


def test_broken_low_shot_files(root, monkeypatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"train\.hdf5.*splitfile_1\.json.*low-shot-shrink-hallucinate"):
        described_set("imagenet_low_shot_1_exp1_train")
    write_low_shot(root / "low_shot_imagenet")
    monkeypatch.setitem(sys.modules, "h5py", None)  # makes its import fail
    with pytest.raises(RuntimeError, match=r"pip install 'dyn_d2\[hdf5\]'"):
        described_set("imagenet_low_shot_1_exp1_train")
    monkeypatch.setitem(sys.modules, "h5py", SimpleNamespace(File=FakeH5))
    with pytest.raises(ValueError, match="no 5 examples of each class"):
        described_set("imagenet_low_shot_5_exp1_train")
    examples = root / "low_shot_imagenet" / "experiment_cfgs" / "splitfile_1.json"
    for content, message in (
        ([[0, 0]] * 8, "an example of class 6 has another label"),
        ([[999, 0]] * 8, "names image 999"),
        ({}, "does not hold a json list"),
    ):
        examples.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            described_set("imagenet_low_shot_1_exp1_train")


def test_own_data_and_added_classes(tmp_path) -> None:
    keys = write_custom(tmp_path)
    cfg = build_cfg("", [*TAFE, *keys])
    assert cfg.DATASETS.TRAIN == ("custom_described_train",) and cfg.DATASETS.TEST == ("custom_described_test",)
    assert ensure_classes("custom_described_test") == CLASSES[:4]
    assert described_set("custom_described_train").unseen.tolist() == [3]
    assert all(report.ok for report in check_dataset("custom_described_train"))
    more = tmp_path / "more.json"
    more.write_text(json.dumps({"elk": [1, 2, 3]}))
    table = class_table(build_cfg("", [*TAFE, *keys, "ZERO_SHOT.CLASSES", str(more)]))
    assert table.classes == CLASSES and table.descriptions[-1].tolist() == [1, 2, 3]
    for content, message in (
        ({"elk": [1, 2]}, "the vector of class elk has 2 numbers, the descriptions of custom_described_train have 3"),
        ({"bee": [1, 2, 3]}, "has a class bee already"),
    ):
        more.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            class_table(build_cfg("", [*TAFE, *keys, "ZERO_SHOT.CLASSES", str(more)]))
    more.unlink()
    with pytest.raises(FileNotFoundError, match="ZERO_SHOT.CLASSES .*more.json does not exist"):
        class_table(build_cfg("", [*TAFE, *keys, "ZERO_SHOT.CLASSES", str(more)]))


def test_bad_own_data(tmp_path) -> None:
    keys = write_custom(tmp_path)
    with pytest.raises(ValueError, match="ZERO_SHOT.CUSTOM.CLASSES is empty"):
        build_cfg("", [*TAFE, *keys[:4]])
    for changes, message in (
        ({"labels": np.array(["ant", "yak"])}, "images of yak, which .*classes.json does not describe"),
        ({"features": np.zeros((3, 6))}, "has 3 features but 2 labels"),
        ({"features": np.zeros((2, 5))}, "take both from one network"),
        ({"features": np.zeros(2)}, r"features have the shape \(2,\)"),
        ({"features": np.full((2, 6), np.nan)}, "a feature has NaN"),
        ({"labels": np.zeros(0, str), "features": np.zeros((0, 6))}, "it has no features"),
    ):
        np.savez(
            tmp_path / "test.npz", **({"features": np.zeros((2, 6)), "labels": np.array(["ant", "dog"])} | changes)
        )
        with pytest.raises(ValueError, match=message):
            build_cfg("", [*TAFE, *keys])
    (tmp_path / "test.npz").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="is no npz with features and labels"):
        build_cfg("", [*TAFE, *keys])


def test_bad_class_files(tmp_path) -> None:
    path = tmp_path / "classes.json"
    for text, message in (
        ("[1]", "does not hold a json object"),
        ("{", "is not valid json"),
        ('{"ant": [1], "bee": [2], "ant": [3]}', "it names 'ant' twice"),
        ("{}", "names no class"),
        ('{"ant": [1, 2], "bee": [1]}', "the vector of class bee has 1 numbers, that of ant has 2"),
        ('{"ant": [1, "x"]}', "the vector of class ant is no list of numbers"),
        ('{"ant": 3}', "the vector of class ant has to be a flat list"),
        ('{"ant": [NaN]}', "the vector of class ant has to be a flat list of finite numbers"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_class_vectors(path)


def test_what_every_set_is_checked_for() -> None:
    part = Part(np.zeros((3, 2), np.float32), np.array([0, 1, 1]))
    for classes, descriptions, parts, message in (
        (["a", "a"], np.eye(2), {"train": part}, "class a twice"),
        (["a", "b"], np.eye(3), {"train": part}, "each class needs one row"),
        (["a"], np.eye(1), {"train": part}, "image 1 of the train part has label 1"),
        (["a", "b"], np.eye(2), {"train": Part(part.features, np.zeros(3, int))}, "trains on 1 classes"),
    ):
        with pytest.raises(ValueError, match=message):
            DescribedSet("here", classes, descriptions, parts)


def test_models_and_data_sets_have_to_fit() -> None:
    with pytest.raises(ValueError, match="TAFENet, but the classes of digits_train have no descriptions"):
        build_cfg("", [*TAFE, "DATASETS.TRAIN", "('digits_train',)"])
    with pytest.raises(ValueError, match="only MODEL.META_ARCHITECTURE TAFENet takes, not GeneralizedRCNN"):
        build_cfg("", ["DATASETS.TRAIN", "('digit_attributes_1_train',)"])
    with pytest.raises(KeyError, match="digits_train is no registered data set whose classes have descriptions"):
        described_set("digits_train")
