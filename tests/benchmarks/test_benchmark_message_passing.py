"""benchmarks/message_passing.py compares equals and writes its table; how long anything takes is not tested."""

import json

import pytest
from tool_runs import load_benchmark


@pytest.fixture(scope="module")
def tool():
    return load_benchmark("message_passing")


@pytest.mark.parametrize("options", [[], ["--shared", "--window", "5"]])
def test_schema(tool, options, tmp_path, capsys):
    path = tmp_path / "numbers.json"
    arguments = ["--size", "6", "--instances", "2", "--channels", "3", "--rounds", "2", "--device", "cpu"]
    assert tool.main([*arguments, *options, "--output", str(path)]) == 0
    data = json.loads(path.read_text())
    (numbers,) = data["results"]
    assert (numbers["size"], numbers["instances"], numbers["channels"]) == (6, 2, 3)
    assert numbers["difference"] < 1e-5
    for mode in ("forward", "training"):
        assert set(numbers["seconds"][mode]) == {"loop", "compiled"}
        assert numbers["speedup"][mode] > 0 and numbers["limit"][mode] > 0
    assert min(numbers["memory_mb"].values()) > 0
    shown = capsys.readouterr().out
    assert "2 x 3 x 6 x 6" in shown and data["machine"]["dtype"] in shown


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--window", "4"]])
def test_what_cannot_be_measured_is_said(tool, arguments, capsys):
    with pytest.raises(SystemExit):
        tool.main(arguments)
    assert arguments[0] in capsys.readouterr().err
