"""benchmarks/group_limit.py runs the convolutions that it says; how long they take is not tested."""

import json

import pytest
from tool_runs import load_benchmark
from torch.utils.flop_counter import FlopCounterMode


@pytest.fixture(scope="module")
def tool():
    return load_benchmark("group_limit")


@pytest.mark.parametrize("images", [12, 24])
def test_half_of_the_groups_is_half_of_the_multiply_adds(tool, images):
    counts = {}
    for way, runs in tool.ways(images, 4, 16, 6).items():
        with FlopCounterMode(display=False) as counter:
            for run in runs:
                run()
        counts[way] = counter.get_total_flops()
    assert counts["choices"] == counts["groups"] == counts["dense"] / 2 > 0
    assert tool.split(32, 6) == [6, 6, 5, 5, 5, 5] and tool.split(2, 6) == [1, 1]


def test_table(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, "STAGES", {"res2": (2, 2, 4, 6), "res3": (3, 4, 8, 3)})
    assert tool.main(["--batch", "6", "--rounds", "1", "--output", str(tmp_path / "limit.json")]) == 0
    rows = json.loads((tmp_path / "limit.json").read_text())["rows"]
    assert [row["blocks"] for row in rows] == ["res2", "res3", "all blocks"]
    assert rows[2]["dense_ms"] == pytest.approx(2 * rows[0]["dense_ms"] + 3 * rows[1]["dense_ms"])
    assert "realised, choices" in capsys.readouterr().out
