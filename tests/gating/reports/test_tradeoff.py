"""The trade-off of a tiny classifier: what is measured, what is not measured twice, and what it says of bad input."""

import json

import pytest
import torch
from route_tables import classifier_cfg

from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.evaluation.results import main_metric
from dyn_d2.gating.cli import tradeoff
from dyn_d2.gating.reports.tradeoff import Point, _settings, force_open, plan

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

THRESHOLD = "MODEL.POLICY.THRESHOLD"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Config and checkpoint of a classifier whose gates say 0.5 and a bit; the data set has 12 digits."""
    records = DatasetCatalog.get("digits_test")[:12]
    DatasetCatalog.register("few_digits", lambda: records)
    metadata = MetadataCatalog.get("digits_test").as_dict()
    MetadataCatalog.get("few_digits").set(**{key: value for key, value in metadata.items() if key != "name"})
    cfg = classifier_cfg("convnet_aig")
    cfg.DATASETS.TEST = ("few_digits",)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model_final.pth")
    yield tmp_path
    DatasetCatalog.remove("few_digits")
    MetadataCatalog.remove("few_digits")


def _main(folder, *arguments: str) -> list[dict]:
    config, weights, output = folder / "config.yaml", folder / "model_final.pth", folder / "out"
    fixed = ["--config-file", str(config), "--weights", str(weights), "--output", str(output)]
    assert tradeoff.main([*fixed, "--batch", "4", "--timed", "2", *arguments]) == 0
    return json.loads((output / "tradeoff.json").read_text())


def test_thresholds_beside_the_dense_run(run, monkeypatch, capsys):
    dense, low, high = _main(run, "--thresholds", "0.01", "0.99")
    assert dense["dense"] and dense["routes"]["executed_percent"] == pytest.approx(100)
    assert dense["routes"]["gates_percent"] == 0
    assert low["point"] == "threshold 0.01" and low["routes"]["executed_percent"] > 100  # the gates cost something
    assert high["routes"]["executed_percent"] < 50 and not high["dense"]
    assert dense["metric"] == {**low["metric"], "task": "classification", "name": "top1_accuracy"}  # nothing is closed
    for record in (dense, low, high):
        assert record["device"] == "cpu" and record["dtype"] == "float32"
        assert record["milliseconds"].keys() == {"1", "4"}
        assert all(0 < times["median"] <= times["p90"] for times in record["milliseconds"].values())
    assert (run / "out" / "tradeoff.png").is_file()
    assert "| threshold 0.99" in (run / "out" / "tradeoff.md").read_text()

    monkeypatch.setattr(DynTrainer, "test", lambda *_: pytest.fail("it was evaluated already"))
    assert _main(run, "--thresholds", "0.01", "0.99") == [dense, low, high]
    monkeypatch.undo()
    assert [r["point"] for r in _main(run, "--sweep", THRESHOLD, "0.01")] == ["dense", "threshold 0.01"]


def test_what_a_point_depends_on(run):
    child = run / "child.yaml"
    child.write_text("_BASE_: config.yaml\n")
    point = Point(str(run / "model_final.pth"), str(child), ())
    before = _settings(point, [])
    assert _settings(point, ["OUTPUT_DIR", "elsewhere"]) == before
    assert _settings(point, [THRESHOLD, "0.25"]) != before
    base = run / "config.yaml"
    before_text = base.read_text()
    assert "MIN_SIZE_TEST: 800" in before_text
    base.write_text(before_text.replace("MIN_SIZE_TEST: 800", "MIN_SIZE_TEST: 640"))
    assert _settings(point, []) != before
    base.write_text(before_text)
    assert _settings(point, []) == before
    records = DatasetCatalog.get("few_digits")[:6]
    DatasetCatalog.remove("few_digits")
    DatasetCatalog.register("few_digits", lambda: records)
    assert _settings(point, []) != before


def test_different_networks_with_their_own_configs(run):
    other = classifier_cfg("all_open")
    other.DATASETS.TEST = ("few_digits",)
    (run / "plain").mkdir()
    (run / "plain" / "config.yaml").write_text(other.dump())
    torch.save({"model": build_model(other).state_dict()}, run / "plain" / "model_final.pth")
    weights = [str(folder / "model_final.pth") for folder in (run, run / "plain")]
    assert tradeoff.main(["--weights", *weights, "--output", str(run / "out"), "--timed", "1"]) == 0
    records = json.loads((run / "out" / "tradeoff.json").read_text())
    assert [(r["weights"], r["point"]) for r in records] == [(w, p) for w in weights for p in ("dense", "gated")]
    assert records[1]["routes"]["gates_percent"] > 0 == records[3]["routes"]["gates_percent"]
    with pytest.raises(FileNotFoundError, match="config.yaml does not exist"):
        (run / "plain" / "config.yaml").unlink()
        tradeoff.main(["--weights", weights[1], "--output", str(run / "out")])


def test_plan_has_a_dense_run_for_each_checkpoint():
    points = plan(["a", "b"], {THRESHOLD: ["0.1", "0.9"], "INPUT.MIN_SIZE_TEST": ["320"]}, "c")
    assert points[0] == Point("a", "c", dense=True) and points[3] == Point("b", "c", dense=True) and len(points) == 6
    assert points[1] == Point("a", "c", (THRESHOLD, "0.1", "INPUT.MIN_SIZE_TEST", "320"))
    assert points[1].name == "threshold 0.1, min_size_test 320"
    assert [point.name for point in plan(["a"], {})] == ["dense", "gated"]
    assert [point.config for point in plan(["x/a", "y/b"], {})] == ["x/config.yaml"] * 2 + ["y/config.yaml"] * 2


def test_bad_input_is_named(run):
    with pytest.raises(FileNotFoundError, match="nowhere.pth does not exist"):
        _main(run, "--weights", str(run / "nowhere.pth"))
    with pytest.raises(ValueError, match="is no gated backbone"):
        force_open(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="only panoptic"):
        main_metric({"panoptic": {"PQ": 1.0}})
    assert main_metric({"bbox": {"AP": 1.0}, "segm": {"AP": 2.0}})["task"] == "segm"
