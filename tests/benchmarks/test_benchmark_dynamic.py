"""benchmarks/dynamic.py builds its cases and writes its table; how long anything takes is not tested."""

import json

import pytest
import torch
from tool_runs import load_benchmark

from dyn_d2.gating import recording

SMALL = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]


@pytest.fixture(scope="module")
def tool():
    return load_benchmark("dynamic")


@pytest.mark.parametrize("case", ["blocks", "stops", "groups", "channels"])
def test_schema(tool, case, tmp_path, capsys):
    path = tmp_path / "numbers.json"
    arguments = ["--case", case, "--batch", "2", "--size", "64", "--rounds", "2", "--warm-up", "0"]
    assert tool.main([*arguments, "--output", str(path), *SMALL]) == 0
    data = json.loads(path.read_text())
    assert {"device", "dtype", "threads", "cores", "load", "torch"} == set(data["machine"])
    (numbers,) = data["results"]
    assert (numbers["case"], numbers["batch"], numbers["size"]) == (case, 2, 64)
    assert 0 < numbers["flops_ratio"] < 1 and numbers["time_ratio"] > 0
    for key in ("layout", "seconds", "memory_mb"):
        assert set(numbers[key]) == {"dense", "gated"}
    assert min(numbers["memory_mb"].values()) > 0
    assert {key: len(times) for key, times in numbers["rounds"].items()} == {
        f"{side} {layout}": 2 for side in ("dense", "gated") for layout in ("NCHW", "NHWC")
    }
    shown = capsys.readouterr().out
    assert case in shown and "realised" in shown and data["machine"]["dtype"] in shown


@pytest.mark.parametrize("case", ["blocks", "groups", "channels"])
def test_with_everything_open_both_sides_are_the_same_network(tool, case):
    networks = tool.build_networks(tool.CASES[case], "cpu", torch.float32, SMALL)
    networks["gated"].policy.draw(2, 1.0, torch.Generator(), "cpu")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        dense, gated = (networks[side](x)["res5"] for side in ("dense", "gated"))
    torch.testing.assert_close(gated / dense.abs().max(), dense / dense.abs().max(), atol=1e-5, rtol=0)


def test_half_of_the_blocks_of_each_image_are_closed(tool):
    networks = tool.build_networks(tool.CASES["blocks"], "cpu", torch.float32, SMALL)
    policy = networks["gated"].policy
    policy.draw(40, 0.5, torch.Generator().manual_seed(0), "cpu")
    opened = torch.stack([policy.decide(i, None, None).open for i in range(len(policy.units))], 1)
    assert set(opened.sum(1).tolist()) == {3, 4}  # of 7
    assert not (opened == opened[0]).all()


def test_each_image_stops_where_it_was_told(tool):
    networks = tool.build_networks(tool.CASES["stops"], "cpu", torch.float32, SMALL)
    policy = networks["gated"].policy
    policy.draw(200, 0.5, torch.Generator().manual_seed(0), "cpu")
    assert set(policy._last.tolist()) == set(range(1, 8))  # of 8 blocks
    policy.draw(3, 0.5, torch.Generator().manual_seed(1), "cpu")
    with torch.no_grad(), recording() as trace:
        networks["gated"](torch.randn(3, 3, 64, 64))
    opened = torch.stack([step.decision.open for step in trace.steps], 1)
    assert opened.sum(1).tolist() == policy._last.tolist()


def test_nothing_to_measure_is_said(tool, capsys):
    with pytest.raises(SystemExit):
        tool.main(["--rounds", "0"])
    assert "--rounds" in capsys.readouterr().err
