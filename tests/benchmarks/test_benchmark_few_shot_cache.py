"""benchmarks/few_shot_cache.py compares equals and writes its numbers; how long anything takes is not tested."""

import json

import pytest
from tiny_detection import tiny_opts, write_boxes
from tool_runs import load_benchmark


@pytest.fixture(scope="module")
def tool():
    return load_benchmark("few_shot_cache")


def test_schema(tool, tmp_path, capsys, monkeypatch) -> None:
    cells = iter(range(1, 4))

    def cell(config_file, opts, folder) -> dict:  # not a process: what it gives is tested with the tools
        number = next(cells)
        return {"seconds": 6.0 / number, "cpu_seconds": 1.0, "memory_mb": 5.0, "AP": 1.0, "nAP": 0.5}

    monkeypatch.setattr(tool, "run_cell", cell)
    opts = tiny_opts(write_boxes(tmp_path / "data"), tmp_path / "out", FEW_SHOT__SHOTS=1)
    path = tmp_path / "numbers.json"
    sizes = ["--config-file", "", "--steps", "2", "--rounds", "2", "--cell-steps", "3", "--output", str(path)]
    assert tool.main([*sizes, *opts]) == 0
    results = json.loads(path.read_text())["results"]
    assert results["step"]["furthest_weights"] < 1e-4
    assert set(results["step"]["seconds"]) == set(tool.SIDES) and results["step"]["ratio"] > 0
    assert results["cell"]["ratio"] == 3 and set(results["cell"]) == {"off", "first", "kept", "ratio", "cache"}
    assert "3.0 times" in capsys.readouterr().out


def test_what_cannot_be_measured_is_said(tool, capsys) -> None:
    with pytest.raises(SystemExit):
        tool.main(["--steps", "0"])
    assert "--steps" in capsys.readouterr().err
