"""The record of an evaluation and the comparison of two."""

import json

import numpy as np
import pytest
import torch
from tool_runs import run_tool

from dyn_d2.config import add_dyn_d2_config
from dyn_d2.evaluation.results import compare, evaluation_record, read_results, weights_hash, write_results

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog


def _record(seed=0, ap=30.0):
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    cfg.DATASETS.TEST, cfg.DATASETS.TRAIN, cfg.SEED = ("a_test_set",), ("a_train_set",), seed
    torch.manual_seed(seed)
    return evaluation_record(cfg, torch.nn.Linear(2, 2), {"bbox": {"AP": ap, "nAP": float("nan")}}, iteration=7)


def test_record_names_all_that_moves_a_number():
    record = _record()
    expected = {"batch", "learning_rate", "iterations", "weights_hash", "seed", "shots_hash", "versions", "protocol"}
    assert expected <= record.keys()
    assert {"dyn_d2", "detectron2", "torch", "backend"} <= record["versions"].keys()
    assert record["metrics"] == {"a_test_set": {"bbox": {"AP": 30.0, "nAP": pytest.approx(float("nan"), nan_ok=True)}}}


def test_round_trip_writes_plain_json(tmp_path):
    record = _record(ap=np.float64(30))
    write_results(tmp_path / "results.json", record)
    back = read_results(tmp_path)
    assert back["metrics"]["a_test_set"]["bbox"] == {"AP": 30.0, "nAP": None}
    json.loads((tmp_path / "results.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_hash_sees_each_weight_and_name_and_nothing_else():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    first = weights_hash(model)
    assert weights_hash(model.train()) == first == weights_hash(model.eval())
    model[1].running_mean[1] += 1e-6
    assert weights_hash(model) != first
    assert weights_hash(torch.nn.Sequential(torch.nn.Identity(), model[0])) != weights_hash(
        torch.nn.Sequential(model[0])
    )


def test_compare_lists_differences_only():
    names = [name for name, _, _ in compare(_record(0, 30.0), _record(1, 31.0))]
    assert {"seed", "weights_hash", "metrics/a_test_set/bbox/AP"} <= set(names)
    assert not {"batch", "learning_rate", "versions/torch", "time"} & set(names)


def test_test_sets_of_equal_names_differ_by_their_content():
    def score(label):
        DatasetCatalog.register("a_test_set", lambda: [{"file_name": "1.png", "label": label}])
        try:
            return _record()
        finally:
            DatasetCatalog.remove("a_test_set")

    def differing(first, second):
        return [name for name, _, _ in compare(first, second) if not name.startswith("metrics/")]  # of NaN

    assert differing(score(0), score(0)) == []
    assert differing(score(0), score(1)) == ["test_data/a_test_set/records"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("{", "not valid json"),
        ("[1]", "does not hold a json object"),
        ('{"metrics": {"a": 3}}', "are not data set"),
        ("{}", "no record"),
    ],
)
def test_unreadable_records_are_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises((FileNotFoundError, ValueError), match=f"results.json.*{message}"):
        read_results(tmp_path)


@pytest.mark.slow
def test_compare_command(tmp_path):
    for name, record in (("a", _record(0, 30.0)), ("b", _record(1, 32.5))):
        write_results(tmp_path / name / "results.json", record)
    run = run_tool("compare_results", tmp_path / "a", tmp_path / "b")
    assert run.returncode == 1 and "+2.5" in run.stdout and "seed" in run.stdout, run.stderr
    assert run_tool("compare_results", tmp_path / "a", tmp_path / "a").returncode == 0
    assert run_tool("compare_results", tmp_path / "a", tmp_path / "c").returncode == 2
