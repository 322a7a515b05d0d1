"""dyn-d2 browse: samples of FiftyOne, here a stand-in that keeps what it gets and knows FiftyOne's names of fields.
With the real one (1.22, MongoDB 6) the command was run by hand."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from own_folders import write_class_folders, write_json_folder, write_label_folder
from PIL import Image

from dyn_d2.cli import browse
from dyn_d2.data.registered import registered_records
from dyn_d2.data.semantic.label_maps import read_label_map
from dyn_d2.engine.browsable import add_answer, names_of_labels
from dyn_d2.engine.predictor import Answer, Labels
from dyn_d2.evaluation.label_figures import LabelMap
from dyn_d2.gating.trace import Route
from dyn_d2.utils.errors import UserError

from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances


class Kept(dict):
    """A label or a sample: refuses fields that FiftyOne's does not have."""

    fields: tuple[str, ...] = ()

    def __init__(self, **values):
        assert not self.fields or values.keys() <= set(self.fields), values.keys()
        super().__init__(values)


def label(name: str, *fields: str) -> type[Kept]:
    return type(name, (Kept,), {"fields": fields})


class FiftyOne(SimpleNamespace):
    """The names of FiftyOne that the command uses."""

    def __init__(self):
        super().__init__(datasets={}, types=SimpleNamespace(FiftyOneDataset="FiftyOneDataset"))
        self.Sample = label("Sample")
        self.Detection = label("Detection", "label", "bounding_box", "mask", "confidence", "iscrowd")
        self.Detections = label("Detections", "detections")
        self.Classification = label("Classification", "label", "confidence")
        self.Segmentation = label("Segmentation", "mask")

    def list_datasets(self):
        return list(self.datasets)

    def dataset_exists(self, name):
        return name in self.datasets

    def Dataset(self, name, overwrite, persistent):  # noqa: N802
        assert persistent and (overwrite or name not in self.datasets)
        kept = SimpleNamespace(samples=[], exports=[], save=lambda: None)
        kept.add_samples = lambda samples, progress: kept.samples.extend(samples)
        kept.export = lambda **how: kept.exports.append(how)
        self.datasets[name] = kept
        return kept


@pytest.fixture
def fiftyone(monkeypatch) -> FiftyOne:
    stand_in = FiftyOne()
    monkeypatch.setitem(sys.modules, "fiftyone", stand_in)
    return stand_in


def keys(**values) -> list[str]:
    return [part for key, value in values.items() for part in (f"DATASETS.CUSTOM.{key}", str(value))]


def own_json(folder) -> list[str]:
    write_json_folder(folder)
    return keys(FORMAT="coco", ROOT=folder, TRAIN="instances.json", TRAIN_IMAGES="images")


def test_boxes_and_masks_are_those_of_the_records(tmp_path, fiftyone, capsys) -> None:
    options = ["--images", "3", "--export", str(tmp_path / "out")]
    assert browse.main([*options, *own_json(tmp_path / "data")]) == 0
    assert "3 images: fiftyone app launch custom_train" in capsys.readouterr().out
    (data,) = fiftyone.datasets.values()
    assert data.exports == [{"export_dir": str(tmp_path / "out" / "custom_train"), "dataset_type": "FiftyOneDataset"}]
    assert len(data.samples) == 3
    for sample in data.samples:
        with Image.open(sample["filepath"]) as image:
            width, height = image.size
        for found in sample["ground_truth"]["detections"]:
            left, top, wide, high = found["bounding_box"]
            shape = (round(high * height), round(wide * width))
            assert 0 <= left < left + wide <= 1 and 0 <= top < top + high <= 1 and not found["iscrowd"]
            assert found["mask"].shape == shape and found["mask"].dtype == bool and found["mask"].mean() > 0.3


def test_training_sets_have_the_masks_of_training(tmp_path, fiftyone, capsys) -> None:
    opts = own_json(tmp_path / "data") + keys(TEST="instances.json", TEST_IMAGES="images", HOLD_OUT=0.25)
    partial = ["MODEL.MASK_ON", "True", "INPUT.PARTIAL_MASKS.CLASSES", "['red']", "INPUT.PARTIAL_MASKS.FRACTION", "0.5"]
    assert browse.main([*opts, *partial]) == 0
    seen = {
        name: [found for sample in data.samples for found in sample["ground_truth"]["detections"]]
        for name, data in fiftyone.datasets.items()
    }
    masked = {name: {found["label"] for found in of_set if found["mask"] is not None} for name, of_set in seen.items()}
    assert masked.pop("custom_train_fit") == {"red"} and set(masked) == {"custom_train_held_out", "custom_test"}
    assert all(found["mask"] is not None for name in masked for found in seen[name])
    assert "6 images (" in (said := capsys.readouterr().out) and "objects have masks, in " in said


def test_a_name_that_is_taken_is_told(tmp_path, fiftyone) -> None:
    opts = own_json(tmp_path / "data")
    assert browse.main(["--name", "mine", *opts]) == 0
    with pytest.raises(UserError, match="has a data set mine already: give --name, or --overwrite"):
        browse.main(["--name", "mine", *opts])
    assert browse.main(["--name", "mine", "--overwrite", "--images", "1", *opts]) == 0
    assert len(fiftyone.datasets["mine"].samples) == 1


def test_label_maps_and_classes(tmp_path, fiftyone) -> None:
    folder = write_label_folder(tmp_path / "labels")
    paths = {"TRAIN": "labels", "TRAIN_IMAGES": "images", "TREE": folder / "tree.yaml"}
    assert browse.main(keys(NAME="maps", FORMAT="semantic", ROOT=folder, **paths)) == 0
    data = fiftyone.datasets["maps_train"]
    names = MetadataCatalog.get("maps_train").stuff_classes
    assert data.mask_targets == {"ground_truth": dict(enumerate(names, 1))}  # FiftyOne never shows pixels of 0
    record = registered_records("maps_train")[0]
    numbers, mask = read_label_map(record["sem_seg_file_name"]).astype(int), data.samples[0]["ground_truth"]["mask"]
    counts = numbers != MetadataCatalog.get("maps_train").ignore_label
    assert counts.any() and (mask[counts] == numbers[counts] + 1).all() and not mask[~counts].any()
    write_class_folders(tmp_path / "classes")
    own = keys(FORMAT="folders", ROOT=tmp_path / "classes", TRAIN="train", TEST="test")
    with pytest.raises(UserError, match="one name, but the config has custom_train, custom_test: give --dataset"):
        browse.main(["--name", "one", *own])
    assert "one" not in fiftyone.datasets
    assert browse.main(["--overwrite", *own]) == 0
    for sample in fiftyone.datasets["custom_test"].samples:
        assert sample["ground_truth"]["label"] in sample["filepath"]


def test_what_a_model_finds_and_its_route(fiftyone) -> None:
    found = Instances((50, 100))
    found.pred_boxes = Boxes(torch.tensor([[10.2, 5.0, 30.0, 20.5]]))
    found.scores, found.pred_classes = torch.tensor([0.75]), torch.tensor([1])
    found.pred_masks = torch.zeros(1, 50, 100, dtype=torch.bool)
    found.pred_masks[0, 5:21, 10:30] = True
    route = Route({"block.1": np.array([True]), "block.2": np.array([False])}, 4e9, 3e9, 3e9, 0.0)
    add_answer(fiftyone, sample := fiftyone.Sample(), Answer(found, route, "large"), ["cat", "dog"])
    (box,) = sample["predictions"]["detections"]
    assert (box["label"], box["confidence"]) == ("dog", 0.75)
    assert box["bounding_box"] == pytest.approx([0.1, 0.1, 0.2, 0.32]) and box["mask"].all()
    assert (sample["route_share"], sample["route_gflops"], sample["model"]) == (0.75, 3.0, "large")
    assert sample["route_open"] == ["block.1"]
    labels = Labels(np.array([0.1, 0.9], np.float32), ["cat", "dog"])
    add_answer(fiftyone, sample := fiftyone.Sample(), Answer(labels), [])
    assert sample["predictions"]["label"] == "dog" and "route_share" not in sample
    many = [str(number) for number in range(300)]
    maps = [
        LabelMap("classes", np.ones((2, 3), int), ["a", "b"], []),
        LabelMap("depth 1", np.full((2, 3), 299), many, []),
    ]
    add_answer(fiftyone, sample := fiftyone.Sample(), Answer(maps), [])
    assert sample["predictions"]["mask"].tolist() == [[2] * 3] * 2
    assert sample["predictions_depth_1"]["mask"].tolist() == [[300] * 3] * 2  # 8 bits would not hold it
    targets = names_of_labels({}, [Answer(maps)])
    assert targets == {"predictions": {1: "a", 2: "b"}, "predictions_depth_1": dict(enumerate(many, 1))}
    assert names_of_labels({}, [Answer(labels)]) == {}


def test_predictions_of_a_checkpoint_come_along(tmp_path, fiftyone, monkeypatch) -> None:
    seen = []

    def answer(images):
        seen.append(len(images))
        return [Answer(Labels(np.ones(1, np.float32), ["all"])) for _ in images]

    monkeypatch.setattr(browse, "load_predictor", lambda weights: SimpleNamespace(answer=answer, classes=["all"]))
    options = ["--weights", "model.pth", "--batch", "3", "--images", "7"]
    assert browse.main([*options, *own_json(tmp_path / "data")]) == 0
    (data,) = fiftyone.datasets.values()
    assert seen == [3, 3, 1] and all(sample["predictions"]["label"] == "all" for sample in data.samples)


def test_what_is_missing_is_one_message(tmp_path, fiftyone, monkeypatch) -> None:
    with pytest.raises(UserError, match="digits_test lie in no files"):
        browse.main(["--dataset", "digits_test"])
    with pytest.raises(ValueError, match="nothing, not registered"):
        browse.main(["--dataset", "nothing"])

    def refuse():
        raise ConnectionError("no port")

    fiftyone.list_datasets = refuse
    with pytest.raises(UserError, match=r"database cannot be used \(no port\): pip install fiftyone-db"):
        browse.main(["--dataset", "digits_test"])
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(UserError, match=r"pip install 'dyn_d2\[fiftyone\]'"):
        browse.main(["--dataset", "digits_test"])
