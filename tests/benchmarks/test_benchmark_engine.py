"""benchmarks/engine.py measures and prints; what it measures is not tested."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_detection import tiny_opts, write_boxes

from dyn_d2.config.read import read_cfg

TOOL = Path(__file__).resolve().parents[2] / "benchmarks" / "engine.py"


@pytest.mark.slow
@pytest.mark.embedded
def test_one_round_of_the_embedded_engine(tmp_path) -> None:
    config, numbers = tmp_path / "tiny.yaml", tmp_path / "numbers.json"
    config.write_text(read_cfg("", tiny_opts(write_boxes(tmp_path / "data", 4), tmp_path / "out")).dump())
    run = subprocess.run(
        [sys.executable, str(TOOL), "--config-file", str(config), "--engine", "embedded", "--rounds", "1",
         "--iterations", "1", "--output", str(numbers)],
        env={**os.environ, "PYTHONPATH": str(TOOL.parents[1])}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    rows = ("data loading, images/s", "training, images/s", "inference, images/s", "memory, MB")
    assert all(row in run.stdout for row in rows) and "embedded" in run.stdout.splitlines()[0]
    medians = json.loads(numbers.read_text())["medians"]["embedded"]
    assert set(medians) == {"data loading", "training", "inference", "memory"} and min(medians.values()) > 0
    assert not (tmp_path / "out").exists() and not (tmp_path / "output").exists()


@pytest.mark.slow
def test_a_config_against_itself_changed(tmp_path) -> None:
    config, numbers = tmp_path / "tiny.yaml", tmp_path / "numbers.json"
    config.write_text(read_cfg("", tiny_opts(write_boxes(tmp_path / "data", 4), tmp_path / "out")).dump())
    run = subprocess.run(
        [sys.executable, str(TOOL), "--config-file", str(config), "--against", "MODEL.ROI_BOX_HEAD.NUM_FC", "1",
         "--rounds", "1", "--iterations", "1", "--output", str(numbers), "MODEL.ROI_BOX_HEAD.FC_DIM", "8"],
        env={**os.environ, "PYTHONPATH": str(TOOL.parents[1])}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    head, *_ = run.stdout.splitlines()
    assert "as given" in head and "changed" in head and "ratio" in head
    assert set(json.loads(numbers.read_text())["medians"]) == {"as given", "changed"}


def test_a_config_is_needed() -> None:
    run = subprocess.run([sys.executable, str(TOOL)], capture_output=True, text=True)
    assert run.returncode == 2 and "either --config-file or --zoo" in run.stderr
    command = [sys.executable, str(TOOL), "--config-file", "x.yaml", "--against", "A", "B", "C", "--rounds", "1"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2 and "--against needs pairs" in run.stderr
