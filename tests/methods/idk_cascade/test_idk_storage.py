"""An IDK cascade that is stored with a checkpoint, and found again."""

import numpy as np
import pytest
import torch
from idk_networks import save_classifier
from tiny_tasks import batch, task_opts

from dyn_d2.checkpoint import CheckpointError, read_checkpoint
from dyn_d2.config.read import read_cfg
from dyn_d2.data.classification.mapper import decode
from dyn_d2.engine.predictor import load_predictor
from dyn_d2.methods.idk_cascade.calibration import Member, load_idk_cascade, read_stored, store, stored_path
from dyn_d2.methods.idk_cascade.execution import IDKCascade
from dyn_d2.methods.idk_cascade.networks import NetworkModel
from dyn_d2.methods.idk_cascade.rules import Logistic, Threshold

from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

DATASET = "digits_test"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("cascade")
    return [save_classifier(folder / name, depth) for name, depth in (("fast", 8), ("slow", 14))]


@pytest.fixture
def models(weights) -> list[NetworkModel]:
    return [NetworkModel.load(path, DATASET) for path in weights]


def _store(weights, models, rules, about=None) -> None:
    members = [
        Member(m.name, stored_path(path, weights[0]), m.weights_hash()) for m, path in zip(models, weights, strict=True)
    ]
    store(weights[0], members, rules, about or {})


def test_stored_and_found_again(weights, models):
    records = DatasetCatalog.get(DATASET)[:6]
    rules = [Logistic("entropy", 3.0, -2.0)]
    before = read_checkpoint(weights[0])
    _store(weights, models, rules, {"held_out": "digits_train_held_out", "rows": [{"accuracy": 0.5}]})
    after = read_checkpoint(weights[0])
    assert after["dyn_d2"] == before["dyn_d2"] and after["model"].keys() == before["model"].keys()
    cascade, about = load_idk_cascade(weights[0], DATASET)
    assert cascade.rules == rules and about["rows"] == [{"accuracy": 0.5}]
    assert [model.name for model in cascade.models] == ["fast", "slow"]
    runs = [which.run(records, 3) for which in (IDKCascade(models, rules), cascade)]
    assert np.array_equal(runs[0].level, runs[1].level)
    assert np.allclose(np.stack(runs[0].answers), np.stack(runs[1].answers))
    assert NetworkModel.load(weights[0], DATASET).weights_hash() == models[0].weights_hash()


def test_other_weights_are_noticed(weights, models):
    _store(weights, models, [Threshold("entropy", 0.5)])
    data = torch.load(weights[1], weights_only=True)
    data["model"]["linear.bias"] += 1
    torch.save(data, weights[1])
    with pytest.raises(CheckpointError, match="slow.*holds other weights.*calibrate it again"):
        load_idk_cascade(weights[0], DATASET)


def test_bad_files_are_named(weights, models, tmp_path):
    with pytest.raises(CheckpointError, match="carries no IDK cascade: calibrate one"):
        load_idk_cascade(weights[1], DATASET)
    with pytest.raises(CheckpointError, match="has to be a .pth file"):
        store(tmp_path / "model.pkl", [], [], {})
    data = torch.load(weights[0], weights_only=True)
    torch.save({**data, "cascade": {"members": [{"name": "x"}], "rules": [], "about": {}}}, tmp_path / "broken.pth")
    with pytest.raises(CheckpointError, match="IDK cascade in .*broken.pth cannot be read"):
        load_idk_cascade(tmp_path / "broken.pth", DATASET)


@pytest.mark.parametrize("rules", [
    [{"kind": "threshold", "measure": "entropy", "alpha": float("nan")}],
    [{"kind": "logistic", "measure": "entropy", "slope": 1.0, "intercept": float("nan")}],
    [{"kind": "threshold", "measure": "entropy", "alpha": None}], [3], "x", None, [], [{"kind": []}],
    [{"kind": "network", "classes": 2, "widths": [3], "weights": None}],
], ids=str)  # fmt: skip
def test_stored_rules_that_are_none_are_refused(rules, tmp_path):
    members = [
        {"name": "a", "weights": "a.pth", "weights_hash": "1"},
        {"name": "b", "weights": "b", "weights_hash": "2"},
    ]
    torch.save({"model": {}, "cascade": {"members": members, "rules": rules, "about": {}}}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="cascade in .*c.pth cannot be read"):
        read_stored(tmp_path / "c.pth")
    for entry in (3, [], {"members": 3}, {"members": members, "rules": rules, "about": 3}):
        torch.save({"model": {}, "cascade": entry}, tmp_path / "c.pth")
        with pytest.raises(CheckpointError, match="cascade in .*c.pth cannot be read"):
            read_stored(tmp_path / "c.pth")


def test_costs_of_gated_and_plain_networks(tmp_path, models):
    """The multiply-adds of a route and those that torch counts are the same for a network that runs whole."""
    records = DatasetCatalog.get(DATASET)[:3]
    inputs = models[0].prepare(records)
    routes = models[0].costs(inputs, models[0].answer(inputs))
    assert routes.tolist() == [models[0]._count(inputs[0])] * 3
    gated = NetworkModel.load(save_classifier(tmp_path, 8, "random_skip"), DATASET)
    inputs = gated.prepare(records)
    assert (gated.costs(inputs, gated.answer(inputs)) <= routes).all()


def test_costs_of_a_gated_detector_are_its_route_and_its_heads():
    cfg = read_cfg("", task_opts("rcnn_fpn", MODEL__POLICY__NAME="all_open"))
    cfg.freeze()
    model = NetworkModel("gated", cfg, build_model(cfg), "digit_scenes_val")
    inputs = [{key: entry[key] for key in ("image", "height", "width")} for entry in batch(1)]
    answers = model.answer(inputs)
    assert "instances" in answers[0] and model._routes is not None
    assert model.costs(inputs, answers)[0] == pytest.approx(model._count(inputs[0]), rel=1e-6)


def test_a_stored_cascade_answers_images_of_no_data_set(weights, models):
    records = DatasetCatalog.get(DATASET)[:4]
    _store(weights, models, [Logistic("entropy", 3.0, -2.0)])
    run = IDKCascade(models, [Logistic("entropy", 3.0, -2.0)]).run(records, 4)
    predictor = load_predictor(weights[0])
    answers = predictor.answer([decode(record) for record in records])
    assert [answer.model for answer in answers] == [("fast", "slow")[level] for level in run.level]
    for answer, wanted in zip(answers, run.answers, strict=True):
        assert np.allclose(answer.found.scores, wanted, atol=1e-6) and answer.found.classes == predictor.classes
    assert len(predictor.classes) == 10
