"""benchmarks/segmentation.py builds its cases and writes its table; how long anything takes is not tested."""

import json

import pytest
import torch
from tool_runs import load_benchmark

from dyn_d2.gating import recording


@pytest.fixture(scope="module")
def tool():
    return load_benchmark("segmentation")


@pytest.mark.parametrize("train", [[], ["--train"]], ids=["eval", "train"])
@pytest.mark.parametrize("case", ["region_conv", "region_stage"])
def test_schema(tool, case, train, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tool, "LAYERS", ((8, 4, 3, 2), (4, 8, 1, 1)))
    path = tmp_path / "numbers.json"
    arguments = ["--case", case, "--size", "8", "--depth", "18", "--rounds", "1", "--warm-up", "0", *train]
    assert tool.main([*arguments, "--share", "0.25", "1", "--output", str(path)]) == 0
    data = json.loads(path.read_text())
    assert len(data["results"]) == 4
    for numbers in data["results"]:
        assert (numbers["case"], numbers["size"], numbers["train"]) == (case, 8, bool(train))
        for key in ("fastest", "seconds", "memory_mb"):
            assert numbers[key].keys() == {"dense", "dynamic"}
        assert set(numbers["fastest"].values()) <= numbers["ways"].keys()
        assert numbers["time_ratio"] > 0 and min(numbers["memory_mb"].values()) > 0
        assert (numbers["realised"] is None) == (numbers["flops_ratio"] == 1)
    assert sorted({numbers["flops_ratio"] for numbers in data["results"]}) == [0.25, 1]
    shown = capsys.readouterr().out
    assert case in shown and "realised" in shown and "threads" in shown


def test_both_sides_compute_the_same(tool):
    x, weight = torch.randn(1, 6, 9, 9), torch.randn(4, 6, 3, 3)
    region = tool.Region.of(tool.blobs((1, 9, 9), 0.4, torch.Generator().manual_seed(0)))
    assert len(region) == round(0.4 * 81)
    dense, dynamic = tool._evaluated_conv(x, weight, torch.randn(4), 2, region)
    maps = [compute() for compute in dense.values()]
    for other in maps[1:]:
        torch.testing.assert_close(other, maps[0], atol=1e-4, rtol=1e-4)
    expected = maps[0] * region.mask[:, None]
    torch.testing.assert_close(dynamic["region, map to map"](), expected, atol=1e-4, rtol=1e-4)
    assert dynamic["region"]().shape == (len(region), 4)


@pytest.mark.slow
@pytest.mark.parametrize("train", [[], ["--train"]], ids=["eval", "train"])
def test_schema_of_dsspn(tool, train, tmp_path):
    path = tmp_path / "numbers.json"
    arguments = ["--case", "dsspn", "--labels", "cityscapes", "--size", "8", "--batch", "2", "--depth", "18", *train]
    assert tool.main([*arguments, "--rounds", "1", "--warm-up", "0", "--output", str(path)]) == 0
    results = json.loads(path.read_text())["results"]
    names = [numbers["name"] for numbers in results]
    if train:
        assert [name.split(",")[0][len("step of the ") :] for name in names] == ["neurons", "head", "whole model"]
        assert all(numbers["fastest"] == {"dense": "fixed", "dynamic": "dynamic"} for numbers in results)
        assert all(numbers["memory_mb"]["dynamic"] < numbers["memory_mb"]["dense"] for numbers in results)
    else:
        assert [numbers["fastest"]["dense"] for numbers in results] == ["fixed", "flat head"] * 2
    assert results[0]["flops_ratio"] < 1 and all(name.endswith("of 6 neurons an image") for name in names)
    assert {(numbers["size"], numbers["batch"], numbers["train"]) for numbers in results} == {(8, 2, bool(train))}


@pytest.mark.parametrize("labels", ["leaves", "coco_stuff"])
def test_images_wake_6_to_10_neurons(tool, labels):
    plan = tool.tree_head(labels, {"stage3": tool.ShapeSpec(channels=4, stride=8)}).plan
    maps, awake = tool.label_maps(plan, 6, 24, torch.Generator().manual_seed(0))
    assert maps.shape == (6, 24, 24) and 6 <= min(awake) and max(awake) <= 10
    for found, count in zip(maps, awake, strict=True):
        shown = {plan.concepts[label] for label in found.unique().tolist()}
        above = {name for name in plan.needed if any(name in plan._tree.ancestors(concept) for concept in shown)}
        assert len(above) == count
    assert len(plan.needed) == {"leaves": 56, "coco_stuff": 41}[labels]


def test_the_scores_lead_to_the_labels_and_as_many_neurons_run(tool):
    shapes = {"stage3": tool.ShapeSpec(channels=4, stride=8)}
    head = tool.tree_head("cityscapes", shapes).eval()
    labels, awake = tool.label_maps(head.plan, 2, 8, torch.Generator().manual_seed(0))
    features = {"stage3": torch.randn(2, 4, 8, 8)}
    for dynamic in (True, False):
        head.dynamic = dynamic
        with torch.no_grad(), recording() as trace:
            scores = tool.told(head, features, labels)
        assert torch.equal(scores[:, :, ::8, ::8].argmax(1), labels)
        opened = sum(step.decision.open.int() for step in trace.task_steps)
        assert opened.tolist() == (awake if dynamic else [6, 6])


def test_nothing_to_measure_is_said(tool, capsys):
    with pytest.raises(SystemExit):
        tool.main(["--share", "0"])
    assert "--share" in capsys.readouterr().err


def test_unknown_labels_are_one_message_before_anything_runs(tool, capsys):
    with pytest.raises(SystemExit):
        tool.main(["--labels", "nope"])
    assert "invalid choice: 'nope'" in capsys.readouterr().err
