"""Own data: unseen classes, folds to choose settings, descriptions from a csv or from examples."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from described_files import CLASSES, write_custom

from dyn_d2.config.derive import build_cfg
from dyn_d2.methods.tafe_net.data import DescribedMapper, described_set
from dyn_d2.methods.tafe_net.data.custom import CustomOptions, read_custom, read_vectors
from dyn_d2.methods.tafe_net.evaluator import DescribedEvaluator

from detectron2.data import DatasetCatalog

ALL = ["ant", "bee", "cat", "dog", "elk", "fox"]


@pytest.fixture
def files(tmp_path) -> list[Path]:
    """Ten photographs of each of six classes to train on, two crops a photograph, and three test images."""
    lines = ["class,objects,furry,small", *(f"{name},{i},{i / 10},{i % 2}" for i, name in enumerate(ALL))]
    (tmp_path / "classes.csv").write_text("\n".join(lines) + "\n")
    rng = np.random.default_rng(0)
    for name, each in (("train", 20), ("test", 3)):
        labels = np.repeat(ALL, each)
        images = np.array([f"{label}{i // 2}.jpg" for label in ALL for i in range(each)])
        features = rng.random((len(labels), 5)) + 3
        np.savez(
            tmp_path / f"{name}.npz", features=features, labels=labels, images=images, boxes=np.ones((len(labels), 4))
        )
    return [tmp_path / name for name in ("train.npz", "test.npz", "classes.csv")]


def test_a_csv_without_its_counts(files) -> None:
    vectors = read_vectors(files[2])
    assert list(vectors) == ALL and np.allclose(vectors["dog"], [0.3, 1])
    for text, message in (
        ("class,furry\nant,1,2\n", "class ant needs one line with 1 numbers"),
        ("class,furry\nant,1\nant,2\n", "class ant needs one line"),
        ("class,furry\nant,much\n", "line of class ant holds something other"),
        ("class,furry\nant,nan\n", "line of class ant has NaN"),
        ("class,furry\n", "names no class"),
        ("", "names no class"),
    ):
        files[2].write_text(text)
        with pytest.raises(ValueError, match=message):
            read_vectors(files[2])


def test_images_of_unseen_classes_are_left_out(files) -> None:
    data = read_custom(files, CustomOptions(unseen=("dog", "bee")))
    assert [data.classes[i] for i in data.unseen] == ["bee", "dog"] and len(data.parts["train"].labels) == 80
    assert len(data.parts["test"].labels) == 18 and data.candidates.tolist() == list(range(6))
    assert data.parts["test"].files[0] == "ant0.jpg" and data.parts["test"].boxes.shape == (18, 4)
    with pytest.raises(ValueError, match="UNSEEN names cow, which .*csv does not describe"):
        read_custom(files, CustomOptions(unseen=("cow",)))


def test_features_are_standardised_by_the_training_images(files) -> None:
    plain = read_custom(files, CustomOptions(unseen=("dog",)))
    data = read_custom(files, CustomOptions(unseen=("dog",), standardise=True))
    train, raw = data.parts["train"].features, plain.parts["train"].features
    assert np.allclose(train.mean(0), 0, atol=1e-4) and np.allclose(train.std(0), 1, atol=0.01)
    expected = (plain.parts["test"].features - raw.mean(0)) / (raw.std(0) + 1e-3)
    assert np.allclose(data.parts["test"].features, expected, atol=1e-4)


def test_folds_never_touch_the_test_images_nor_unseen_classes(files) -> None:
    np.savez(files[1], features=np.ones((1, 9)), labels=np.array(["ant"]))  # looked at, it would be refused
    left_out = []
    for fold in (1, 2):
        data = read_custom(files, CustomOptions(unseen=("dog", "elk"), fold=fold, folds=2))
        names = [data.classes[i] for i in data.candidates]
        assert names == ["ant", "bee", "cat", "fox"]
        own = {data.classes[i] for i in data.unseen}
        left_out.append(own)
        train, test = data.parts["train"], data.parts["test"]
        assert not {data.classes[i] for i in train.labels} & (own | {"dog", "elk"})
        assert not set(train.files) & set(test.files)  # both crops of a photograph are on one side
        seen = test.labels[~np.isin(test.labels, data.unseen)]
        assert 0 < len(seen) < len(train.labels) and (np.bincount(test.labels)[data.unseen] == 20).all()
    assert left_out == [{"ant", "cat"}, {"bee", "fox"}]
    with pytest.raises(ValueError, match="FOLD is 3 of 2 FOLDS"):
        read_custom(files, CustomOptions(fold=3, folds=2))


def test_unseen_classes_described_by_examples(files) -> None:
    drawn = set()
    for draw in range(6):
        data = read_custom(files[:2], CustomOptions(unseen=("dog", "bee"), shots=2, draw=draw))
        part = data.parts["train"]
        assert data.classes == ALL and data.shots == 2
        assert np.allclose(data.descriptions[0], part.features[part.labels == 0].mean(0), atol=1e-5)
        drawn.add(tuple(data.descriptions[1].tolist()))
    assert len(drawn) > 3
    with np.load(files[0]) as content:
        own = content["features"][content["labels"] == "bee"].astype(np.float32)
    pairs = {tuple((own[i] + own[j]) / 2) for i in range(20) for j in range(i)}
    for vector in drawn:
        assert any(np.allclose(vector, pair, atol=1e-5) for pair in pairs)
    with pytest.raises(ValueError, match="class bee has 20 training images, but ZERO_SHOT.CUSTOM.SHOTS 21"):
        read_custom(files[:2], CustomOptions(unseen=("bee",), shots=21))
    with pytest.raises(ValueError, match="FOLD 0"):
        read_custom(files[:2], CustomOptions(unseen=("bee",), shots=1, fold=1, folds=2))


def test_classes_are_drawn_with_equal_chance(files) -> None:
    with np.load(files[0]) as content:
        kept = np.r_[0:2, 20:120]  # two images of ant, twenty of the others
        arrays = {name: content[name][kept] for name in content}
    np.savez(files[0], **arrays)
    keys = [word for key, file in zip(("TRAIN", "TEST", "CLASSES"), files, strict=True)
            for word in (f"ZERO_SHOT.CUSTOM.{key}", str(file))]  # fmt: skip
    name = build_cfg("", ["MODEL.META_ARCHITECTURE", "TAFENet", *keys]).DATASETS.TRAIN[0]
    part = described_set(name).parts["train"]
    record = DatasetCatalog.get(name)[5]
    random.seed(0)
    drawn = [DescribedMapper(name, True, balance=True)(record) for _ in range(300)]
    counts = np.bincount([item["label"] for item in drawn], minlength=6)
    assert (counts > 25).all() and counts.sum() == 300
    for item in drawn[:20]:
        assert (
            np.allclose(item["feature"], part.features[item["image_id"]])
            and part.labels[item["image_id"]] == item["label"]
        )
    assert DescribedMapper(name, False, balance=True)(record)["label"] == record["label"]


def test_other_options_are_another_data_set(files) -> None:
    keys = [word for key, file in zip(("TRAIN", "TEST", "CLASSES"), files, strict=True)
            for word in (f"ZERO_SHOT.CUSTOM.{key}", str(file))]  # fmt: skip
    names = []
    for more in ([], ["ZERO_SHOT.CUSTOM.UNSEEN", "['dog']"], ["ZERO_SHOT.CUSTOM.UNSEEN", "['bee']"]):
        names.append(build_cfg("", ["MODEL.META_ARCHITECTURE", "TAFENet", *keys, *more]).DATASETS.TEST[0])
    assert names[0] == "custom_described_test" and len(set(names)) == 3
    assert [described_set(name).unseen.tolist() for name in names] == [[], [3], [1]]
    with pytest.raises(ValueError, match=r"CUSTOM\.CLASSES is empty"):
        build_cfg("", ["MODEL.META_ARCHITECTURE", "TAFENet", *keys[:4]])
    few = build_cfg("", ["MODEL.META_ARCHITECTURE", "TAFENet", *keys[:4], "ZERO_SHOT.CUSTOM.UNSEEN", "['bee']"])
    assert described_set(few.DATASETS.TRAIN[0]).shots == 1


def test_what_does_not_fit(files) -> None:
    for arrays, message in (
        ({"labels": np.array(["ant"] * 2)}, "has 3 features but 2 labels"),
        ({"labels": np.array(["ant"] * 3), "images": np.array(["a"])}, "but 1 images"),
        ({"labels": np.array(["ant"] * 3), "boxes": np.ones((3, 2))}, r"boxes have the shape \(3, 2\)"),
    ):
        np.savez(files[1], features=np.ones((3, 5)), **arrays)
        with pytest.raises(ValueError, match=message):
            read_custom(files)


def test_a_penalty_of_seen_classes(tmp_path) -> None:
    """Calibrated stacking: what a seen class won by little goes to the best unseen one; T1 stays."""
    cfg = build_cfg("", ["MODEL.META_ARCHITECTURE", "TAFENet", *write_custom(tmp_path)])
    name = cfg.DATASETS.TEST[0]  # dog is unseen
    labels = described_set(name).parts["test"].labels
    results = {}
    for penalty in (0.0, 0.5):
        evaluator = DescribedEvaluator(name, "zero_shot", None, CLASSES[:4], penalty)
        scores = torch.zeros(len(labels), 4)
        scores[:, 3] = 0.8  # dog, everywhere
        for row, label in enumerate(labels):
            scores[row, label if label < 3 else 0] = 2.0 if label < 3 else 1.0
        inputs = [{"image_id": i, "label": int(label)} for i, label in enumerate(labels)]
        evaluator.process(inputs, [{"scores": row} for row in scores])
        results[penalty] = evaluator.evaluate()["zero_shot"]
    assert results[0.0] == {"T1": 100.0, "u": 0.0, "s": 100.0, "H": 0.0}
    assert results[0.5] == {"T1": 100.0, "u": 100.0, "s": 100.0, "H": 100.0}
