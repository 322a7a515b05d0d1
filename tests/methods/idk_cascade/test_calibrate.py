"""dyn-d2 calibrate on tiny classifiers and detectors: what it writes, what it refuses."""

import json

import numpy as np
import pytest
import torch
from idk_networks import save_classifier, save_detector
from tiny_detection import CLASSES, tiny_opts, write_boxes

from dyn_d2.config.derive import build_cfg
from dyn_d2.gating.meta_arch.classifier import ImageClassifier
from dyn_d2.methods.idk_cascade import cli, cross_cli, report
from dyn_d2.methods.idk_cascade.calibration import load_idk_cascade
from dyn_d2.methods.idk_cascade.networks import NetworkModel

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances


@pytest.fixture
def classifiers(tmp_path) -> list[str]:
    return [save_classifier(tmp_path / name, depth) for name, depth in (("fast", 8), ("slow", 14))]


@pytest.fixture
def detectors(tmp_path):
    names = []
    for number, split in enumerate(("train", "held_out", "test")):
        data = write_boxes(tmp_path / split, 4, seed=number)
        name = f"toy_boxes_{split}"
        register_coco_instances(
            name, {"split": split, "thing_classes": list(CLASSES)}, str(data), str(data.parent / "images")
        )
        names.append(name)
    yield [save_detector(tmp_path / f"d{size}", size, names[0], data) for size in (40, 80)]
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def _main(tmp_path, weights, *arguments: str) -> dict:
    fixed = ["--weights", *weights, "--output", str(tmp_path / "out"), "--limit", "40", "--batch", "8"]
    assert cli.main([*fixed, *arguments]) == 0
    return json.loads((tmp_path / "out" / "cascade.json").read_text())


def test_classifiers(tmp_path, classifiers, capsys):
    record = _main(
        tmp_path, classifiers, "--held-out", "digits_train_held_out", "--test", "digits_test", "--budget", "1.2",
        "--lambdas", "0.01", "0.2",
    )  # fmt: skip
    assert record["methods"].keys() == {
        "confidence", "entropy", "margin", "cost_aware", "cost_aware_margin", "oblivious",
    }  # fmt: skip
    assert record["goal"] == {"accuracy": None, "budget": 1.2}
    for name in ("confidence", "entropy"):
        expected, realised = record["methods"][name]["rows"]
        assert expected["relative_cost"] <= 1.2 and expected["count"] == realised["count"] == 40
        assert record["methods"][name]["metric"]["value"] == pytest.approx(100 * realised["accuracy"])
        reached = realised["reach"][1]
        costs = [model["gflops"] for model in record["models"]]
        assert realised["gflops"] == pytest.approx(costs[0] + reached * costs[1])
    for file in ("curves.png", "uncertainty.png", "models.png", "entropies.png"):
        assert (tmp_path / "out" / file).stat().st_size > 5000
    assert "| entropy" in (tmp_path / "out" / "cascade.md").read_text()
    _, about = load_idk_cascade(classifiers[0], "digits_test")
    assert about["method"] == record["stored"] and about["held_out"] == "digits_train_held_out"


@pytest.mark.slow
def test_three_models_by_every_way_to_calibrate(tmp_path, classifiers):
    """Jointly and one after the other; what is stored runs as the report says."""
    weights = [*classifiers, save_classifier(tmp_path / "slowest", 20)]
    sets = ["--held-out", "digits_train_held_out", "--test", "digits_test"]
    methods = ["entropy", "cost_aware", "cost_aware_network", "oblivious_network"]
    joint = _main(tmp_path, weights, *sets, "--methods", *methods, "--budget", "2.2", "--lambdas", "0.1")
    stages = _main(tmp_path, weights, *sets, "--methods", *methods[:2], "--budget", "2.2", "--stage-wise", "--no-store")
    for record, names in ((joint, methods), (stages, methods[:2])):
        assert list(record["methods"]) == names
        for entry in record["methods"].values():
            expected, realised = entry["rows"]
            assert len(expected["reach"]) == 3 and len(expected["idk_rates"]) == 2 and expected["relative_cost"] <= 2.2
            costs = [model["gflops"] for model in record["models"]]
            assert realised["gflops"] == pytest.approx(
                sum(r * c for r, c in zip(realised["reach"], costs, strict=True))
            )
    accuracies = [record["methods"]["entropy"]["rows"][0]["accuracy"] for record in (joint, stages)]
    assert accuracies[0] >= accuracies[1]
    cascade, about = load_idk_cascade(weights[0], "digits_test")
    run = cascade.run(DatasetCatalog.get("digits_test")[:12], batch=5)
    assert about["method"] == joint["stored"] and len(cascade.models) == 3 and len(run.answers) == 12


@pytest.mark.slow
def test_the_network_as_idk_classifier_is_stored_and_runs(tmp_path, classifiers):
    record = _main(
        tmp_path, classifiers, "--held-out", "digits_train_held_out", "--test", "digits_test", "--budget", "1.9",
        "--methods", "cost_aware_network", "--lambdas", "0.05",
    )  # fmt: skip
    cascade, _ = load_idk_cascade(classifiers[0], "digits_test")
    records = DatasetCatalog.get("digits_test")
    run = cascade.run([records[i] for i in np.linspace(0, len(records) - 1, 40).astype(int)], batch=8)
    realised = record["methods"]["cost_aware_network"]["rows"][1]
    assert realised["reach"] == pytest.approx([1.0, (run.level == 1).mean()])
    assert record["stored"] == "cost_aware_network" and "network" in (tmp_path / "out" / "cascade.md").read_text()


def test_times_on_test_images_are_taken_in_turns(tmp_path, classifiers, monkeypatch):
    """All times of the report come from one call, whose clock says 1, 2, 3 ... ms of the runners in their order."""
    asked = []

    def in_turns(runners, images, batch, rounds):
        asked.append((list(runners), len(images), batch, rounds))
        return {name: {"milliseconds": 1.0 + number} for number, name in enumerate(runners)}

    monkeypatch.setattr(report, "in_turns", in_turns)
    sets = ["--held-out", "digits_train_held_out", "--test", "digits_test", "--budget", "1.9", "--rounds", "2"]
    record = _main(tmp_path, classifiers, *sets, "--methods", "entropy", "margin")
    assert asked == [(["0: fast", "1: slow", "IDK cascade entropy", "IDK cascade margin"], 40, 8, 2)]
    assert [model["sets"]["digits_test"]["milliseconds"] for model in record["models"]] == [1, 2]
    for number, name in enumerate(("entropy", "margin")):
        expected, realised = record["methods"][name]["rows"]
        assert realised["milliseconds"] == 3 + number
        assert expected["milliseconds"] == pytest.approx(1 + 2 * expected["reach"][1])
    text = (tmp_path / "out" / "cascade.md").read_text()
    assert "Times on digits_test, and the expected ones: models and IDK cascades in turns, the least of 2" in text


def test_held_out_images_alone_and_nothing_stored(tmp_path, classifiers):
    before = open(classifiers[0], "rb").read()
    arguments = ["--held-out", "digits_train_held_out", "--methods", "entropy", "--no-store"]
    record = _main(tmp_path, classifiers, *arguments)
    (row,) = record["methods"]["entropy"]["rows"]
    assert "Times: each model once, one after another" in (tmp_path / "out" / "cascade.md").read_text()
    assert row["accuracy"] >= record["goal"]["accuracy"] - 1e-12 and record["stored"] == "entropy"
    assert open(classifiers[0], "rb").read() == before


@pytest.mark.slow
def test_detectors(tmp_path, detectors):
    record = _main(
        tmp_path, detectors, "--held-out", "toy_boxes_held_out", "--test", "toy_boxes_test", "--time-points", "2",
        "--methods", "box_entropy_sum", "box_entropy_max", "--budget", "1.3",
    )  # fmt: skip
    assert record["models"][1]["gflops"] > 1.5 * record["models"][0]["gflops"]
    assert record["methods"]["box_entropy_sum"]["metric"]["name"] == "AP"
    names = [point["name"] for point in record["time_curve"]]
    assert names[:2] == ["d40", "d80"] and len(names) in (3, 4)
    assert all(point["milliseconds"] > 0 and point["metric"]["value"] >= 0 for point in record["time_curve"])
    assert (tmp_path / "out" / "ap_against_time.png").stat().st_size > 5000


def test_two_sizes_of_one_detector_by_cross_fitting(tmp_path, detectors, capsys):
    """The metric of the data set stands beside the losses of the images; what is kept is not computed again."""
    words = ["--weights", f"{detectors[1]}@40", detectors[1], "--images", "toy_boxes_held_out", "--budget", "1.3",
             "--methods", "box_entropy_sum", "--repeats", "2", "--output", str(tmp_path / "out")]  # fmt: skip
    assert cross_cli.main([*words, "--rounds", "1", "--batch", "1", "2"]) == 0
    record = json.loads((tmp_path / "out" / "cross_fit.json").read_text())
    assert [model["name"] for model in record["models"]] == ["d80@40", "d80"] and "AP within" in record["measure"]
    assert record["models"][1]["gflops"] > 1.5 * record["models"][0]["gflops"]
    (entry,) = record["cascades"]
    metric = entry["metric"]
    last = record["models"][-1]["metric"]
    assert metric["name"] == "AP" and metric["difference"] == pytest.approx(metric["value"] - last["value"])
    assert not (tmp_path / "out" / "models.png").exists()
    assert set(entry["relative_time"]) == {"1", "2"} and "relative cost" in capsys.readouterr().out
    kept = (tmp_path / "out" / "answers.npz").stat().st_mtime_ns
    assert cross_cli.main(words) == 0
    again = json.loads((tmp_path / "out" / "cross_fit.json").read_text())
    assert again["models"] == record["models"] and (tmp_path / "out" / "answers.npz").stat().st_mtime_ns == kept
    assert again["cascades"][0]["metric"] == metric and again["cascades"][0]["accuracy"] == entry["accuracy"]


def test_a_stored_cascade_of_two_sizes(tmp_path, classifiers, monkeypatch):
    """The size is kept with the model, also when its file has another name by then."""
    words = ["--held-out", "digits_train_held_out", "--methods", "entropy", "--budget", "1.9"]
    _main(tmp_path, [classifiers[1], f"{classifiers[1]}@48"], *words)
    cascade, _ = load_idk_cascade(classifiers[1], "digits_test")
    assert [model.name for model in cascade.models] == ["slow", "slow@48"]
    sizes = [model.prepare(DatasetCatalog.get("digits_test")[:1])[0]["image"].shape[-1] for model in cascade.models]
    assert sizes == [sizes[0], 48] and sizes[0] < 48
    small = f"{classifiers[0]}@32"
    _main(tmp_path, [small, f"{classifiers[1]}@48"], *words)
    renamed = tmp_path / "fast" / "renamed.pth"
    (tmp_path / "fast" / "model_final.pth").rename(renamed)
    cascade, _ = load_idk_cascade(renamed, "digits_test")
    assert [model.weights for model in cascade.models] == [f"{renamed}@32", f"{classifiers[1]}@48"]
    _main(tmp_path, [str(renamed), f"{renamed}@48"], *words)
    renamed = renamed.rename(tmp_path / "fast" / "again.pth")
    cascade, _ = load_idk_cascade(renamed, "digits_test")
    assert [model.weights for model in cascade.models] == [str(renamed), f"{renamed}@48"]
    with pytest.raises(ValueError, match="side of the images in pixels"):
        NetworkModel.load(f"{classifiers[1]}@8", "digits_test")
    other = NetworkModel.load(f"{classifiers[1]}@48,MODEL.POLICY.THRESHOLD=0.25", "digits_test")
    assert other.name == "slow@48,THRESHOLD=0.25" and other.cfg.MODEL.POLICY.THRESHOLD == 0.25
    with pytest.raises(ValueError, match="'64' after the @ is no KEY=VALUE"):
        NetworkModel.load(f"{classifiers[1]}@48,64", "digits_test")
    monkeypatch.setattr(ImageClassifier, "OWN_SIZE", "MODEL.SOME.SIDE", raising=False)
    with pytest.raises(ValueError, match="resizes all images itself .MODEL.SOME.SIDE."):
        NetworkModel.load(f"{classifiers[1]}@48", "digits_test")


def test_what_is_refused(tmp_path, classifiers, capsys):
    held_out = ["--held-out", "digits_train_held_out"]
    with pytest.raises(ValueError, match="digits_test is a test split"):
        _main(tmp_path, classifiers, "--held-out", "digits_test")
    with pytest.raises(ValueError, match="a model was trained on images of digits_train_fit"):
        _main(tmp_path, classifiers, "--held-out", "digits_train_fit")
    with pytest.raises(ValueError, match="cannot be both the held-out and the test set"):
        _main(tmp_path, classifiers, *held_out, "--test", "digits_train_held_out")
    with pytest.raises(KeyError, match="no_such_set is not registered"):
        _main(tmp_path, classifiers, "--held-out", "no_such_set")
    with pytest.raises(ValueError, match="no threshold reaches a budget of 0.01"):
        _main(tmp_path, classifiers, *held_out, "--budget", "0.01", "--methods", "entropy")
    with pytest.raises(ValueError, match="slow, fast do not go from the cheapest .* give them as fast, slow"):
        _main(tmp_path, classifiers[::-1], *held_out)
    with pytest.raises(SystemExit):
        _main(tmp_path, classifiers, *held_out, "--accuracy", "0.95")
    assert "--accuracy is in percent: 95, not 0.95" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--methods for classifiers are"):
        _main(tmp_path, classifiers, *held_out, "--methods", "box_entropy_max")
    whole = save_classifier(tmp_path / "whole", 8, train="digits_train")
    with pytest.raises(ValueError, match="a model was trained on images of digits_train_held_out"):
        _main(tmp_path, [whole, classifiers[1]], *held_out)
    fit = ["--weights", *classifiers, "--images", "digits_train_fit"]
    part = ["--weights", whole, classifiers[1], "--images", "digits_train_held_out"]
    for words in (fit, part):
        with pytest.raises(ValueError, match="a model was trained on images of digits_train_"):
            cross_cli.main([*words, "--output", str(tmp_path / "cross")])


def test_parts_that_were_divided_otherwise_in_training_are_refused(tmp_path, classifiers):
    path = save_classifier(tmp_path / "otherwise", 8)
    data = torch.load(path, weights_only=True)
    data["dyn_d2"]["inputs"] = {"data": {"digits_train_fit": {"held out": "0.1 of the images"}}}
    torch.save(data, path)
    message = (
        r"otherwise: digits_train_held_out may have images .* \(held out: 0.1 of the images -> 0.2 of the images\)"
    )
    with pytest.raises(ValueError, match=message):
        _main(tmp_path, [path, classifiers[1]], "--held-out", "digits_train_held_out")
    with pytest.raises(ValueError, match=message):
        words = ["--weights", path, classifiers[1], "--images", "digits_train_held_out"]
        cross_cli.main([*words, "--output", str(tmp_path / "cross")])


def test_few_shot_detectors_know_what_their_sets_were_cut_from(tmp_path):
    cfg = build_cfg("", tiny_opts(write_boxes(tmp_path / "data"), tmp_path / "out"))
    assert cfg.DATASETS.TRAIN == ("custom_split1_base_train",)
    model = NetworkModel("few", cfg, torch.nn.Linear(1, 1), cfg.DATASETS.TEST[0])
    assert "custom_train" in model.trained_on and "custom_test" in model.tested_on
