"""`make demo` in its quick form: table, pictures, and nothing trained a second time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, list[subprocess.CompletedProcess]]:
    """The folder, and the same command twice."""
    folder = tmp_path_factory.mktemp("make_demo")
    env = {key: value for key, value in os.environ.items() if key != "DETECTRON2_DATASETS"}
    env["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, str(ROOT / "tools" / "demo_few_shot.py"), "--quick", "--output", "out"]
    return folder / "out" / "quick", [
        subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True) for _ in range(2)
    ]


def _table(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|") and ("only" in line or " w/ " in line
                                                                           or "FRCN" in line)]  # fmt: skip


@pytest.mark.slow
def test_table_and_progress(runs) -> None:
    _, (first, _) = runs
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    methods = [line.split("|")[2].strip() for line in _table(first.stdout)]
    assert methods == ["base only", "FRCN+ft-full", "TFA w/ fc", "TFA w/ cos"]
    assert "1 seed (0)" in first.stdout and "not predicted" in _table(first.stdout)[0]
    headers = [line for line in first.stdout.splitlines() if line.startswith("=== step")]
    assert [line.split()[2] for line in headers] == ["1", "2", "3", "4", "5", "6"]
    assert "of 6" in headers[0] and "base training" in headers[1] and "TFA w/ cos" in headers[4]


def test_files_that_are_named_exist(runs) -> None:
    output, (first, _) = runs
    summary = first.stdout.rpartition("Of TFA w/ cos")[2]
    paths = [word for word in summary.split() if word.startswith("out/quick/")]
    named = {Path(path).name for path in paths}
    assert {"metrics.json", "results.json", "model_final.pth", "predictions.png", "benchmark.json"} <= named
    assert all((output.parents[1] / path).stat().st_size > 0 for path in paths)
    with Image.open(output / "predictions.png") as grid:
        assert min(grid.size) > 500
    record = json.loads((output / "tfa_cos_split1_10shot_seed0" / "results.json").read_text())
    assert record["shots_hash"] and record["few_shot"]["shots"] == 10 and record["classifier"] == "cosine"


def test_second_run_trains_nothing_and_shows_the_same(runs) -> None:
    _, (first, second) = runs
    assert second.returncode == 0, second.stderr[-3000:]
    assert "all models are trained" in second.stdout and "training, " not in second.stdout
    assert _table(second.stdout) == _table(first.stdout)
    assert "step 2 of 2" in second.stdout


@pytest.mark.slow
def test_other_settings_in_the_same_folder_are_one_message(runs) -> None:
    output, _ = runs
    command = [sys.executable, str(ROOT / "tools" / "demo_few_shot.py"), "--quick", "--output", str(output.parent)]
    run = subprocess.run([*command, "MODEL.RPN.NMS_THRESH", "0.6"], capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "holds stage base of another config" in run.stderr
