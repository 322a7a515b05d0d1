"""benchmarks/kept_units.py compares equals and writes its numbers; how long anything takes is not tested."""

import json

import pytest
from tool_runs import load_benchmark


@pytest.fixture(scope="module")
def tool():
    return load_benchmark("kept_units")


def test_schema(tool, tmp_path, capsys) -> None:
    path = tmp_path / "numbers.json"
    sizes = ["--config-file", "PMN/digits.yaml", "--steps", "2", "--rounds", "2", "--output", str(path)]
    assert tool.main([*sizes, "MODEL.RESNETS.DEPTH", "8", "SOLVER.IMS_PER_BATCH", "8"]) == 0
    results = json.loads(path.read_text())["results"]
    assert results["furthest_weights"] < 1e-4 and 0 < results["executed_share"] < 1.1
    assert (
        set(results["seconds"]) == set(results["cpu_seconds"]) == set(tool.SIDES)
        and results["ratio"] > 0
        and results["megabytes"] > 0
    )
    assert "with kept means" in capsys.readouterr().out


def test_what_cannot_be_measured_is_said(tool, capsys) -> None:
    with pytest.raises(SystemExit):
        tool.main(["--steps", "0"])
    assert "--steps" in capsys.readouterr().err
