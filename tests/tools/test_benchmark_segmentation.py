"""tools/benchmark_segmentation.py builds its cases and writes its table; how long anything takes is not tested."""

import json

import pytest
import torch
from tool_runs import load_tool


@pytest.fixture(scope="module")
def tool():
    return load_tool("benchmark_segmentation")


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


def test_nothing_to_measure_is_said(tool, capsys):
    with pytest.raises(SystemExit):
        tool.main(["--share", "0"])
    assert "--share" in capsys.readouterr().err
