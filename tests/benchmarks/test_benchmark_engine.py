"""benchmarks/engine.py measures and prints; what it measures is not tested."""

import json
import os
import subprocess
import types

import pytest
from tiny_detection import tiny_opts, write_boxes
from tool_runs import ROOT, load_benchmark
from warm_processes import run_warm

from dyn_d2.config.read import read_cfg


@pytest.fixture
def main(monkeypatch, tmp_path):
    """The command in an empty folder; the processes that it starts need not import torch."""

    def warm(command: list[str], env: dict[str, str], **_) -> subprocess.CompletedProcess:
        return run_warm(command[1:], tmp_path, {**env, "PYTHONPATH": str(ROOT)}, 300)

    engine = load_benchmark("engine")
    monkeypatch.setattr(engine, "subprocess", types.SimpleNamespace(run=warm))
    monkeypatch.chdir(tmp_path)
    return engine.main


@pytest.fixture
def config(tmp_path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(read_cfg("", tiny_opts(write_boxes(tmp_path / "data", 4), tmp_path / "out")).dump())
    return str(path)


@pytest.mark.slow
@pytest.mark.embedded
def test_one_round_of_the_embedded_engine(tmp_path, main, config, capsys) -> None:
    numbers = tmp_path / "numbers.json"
    words = ["--config-file", config, "--engine", "embedded", "--rounds", "1", "--iterations", "1"]
    assert main([*words, "--output", str(numbers)]) == 0
    rows = ("data loading, images/s", "training, images/s", "inference, images/s", "memory, MB")
    printed = capsys.readouterr().out
    assert all(row in printed for row in rows) and "embedded" in printed.splitlines()[0]
    medians = json.loads(numbers.read_text())["medians"]["embedded"]
    assert set(medians) == {"data loading", "training", "inference", "memory"} and min(medians.values()) > 0
    assert not {"out", "output"} & set(os.listdir(tmp_path))


@pytest.mark.slow
def test_a_config_against_itself_changed(tmp_path, main, config, capsys) -> None:
    numbers = tmp_path / "numbers.json"
    words = ["--config-file", config, "--against", "MODEL.ROI_BOX_HEAD.NUM_FC", "1", "--rounds", "1"]
    more = ["--iterations", "1", "--output", str(numbers), "MODEL.ROI_BOX_HEAD.FC_DIM", "8"]
    assert main([*words, *more]) == 0
    head, *_ = capsys.readouterr().out.splitlines()
    assert "as given" in head and "changed" in head and "ratio" in head
    assert set(json.loads(numbers.read_text())["medians"]) == {"as given", "changed"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "either --config-file or --zoo"),
        (["--config-file", "x.yaml", "--against", "A", "B", "C", "--rounds", "1"], "--against needs pairs"),
    ],
)
def test_what_the_command_line_needs(main, words, message, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2 and message in capsys.readouterr().err
