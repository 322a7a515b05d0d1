"""benchmarks/low_shot.py compares equals and writes its table; how long anything takes is not tested."""

import json

import pytest
from tool_runs import load_benchmark


@pytest.fixture(scope="module")
def tool():
    return load_benchmark("low_shot")


def test_schema(tool, tmp_path, capsys):
    path = tmp_path / "numbers.json"
    sizes = ["--images", "2", "--classes", "3", "--width", "8", "--grid", "4", "--rounds", "2", "--device", "cpu"]
    assert tool.main([*sizes, "--output", str(path)]) == 0
    data = json.loads(path.read_text())
    assert [numbers["case"] for numbers in data["results"]] == list(tool.CASES)
    for numbers in data["results"]:
        assert numbers["difference"] < 1e-5
        for mode in tool.MODES:
            for what in ("seconds", "memory_mb"):
                assert set(numbers[what][mode]) == {tool.WRITTEN, tool.OURS} and min(numbers[what][mode].values()) > 0
    shown = capsys.readouterr().out
    assert all(case in shown for case in tool.CASES) and "classes 3" in shown


def test_what_cannot_be_measured_is_said(tool, capsys):
    with pytest.raises(SystemExit):
        tool.main(["--classes", "0"])
    assert "--classes" in capsys.readouterr().err
