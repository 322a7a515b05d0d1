"""The doctor answers also where the package itself cannot be imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dyn_d2.doctor import Finding, examine, report

ROOT = Path(__file__).resolve().parents[1]


def _run(*broken: str, folder: Path) -> subprocess.CompletedProcess:
    for name in broken:
        (folder / f"{name}.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')\n")
    paths = os.pathsep.join([str(folder), str(ROOT)])
    env = {**os.environ, "DYN_D2_BACKEND": "embedded", "PYTHONPATH": paths}
    return subprocess.run([sys.executable, "-m", "dyn_d2.doctor"], env=env, capture_output=True, text=True, cwd="/")


def test_this_environment_is_sound():
    problems = [finding for finding in examine() if finding.state == "problem"]
    assert not problems, report(problems)


def test_broken_torch_is_a_problem_with_a_command(tmp_path):
    run = _run("torch", folder=tmp_path)
    assert run.returncode == 1
    assert "PROBLEM  torch" in run.stdout and "pip install 'torch>=2.6' torchvision" in run.stdout


@pytest.mark.slow
def test_missing_libgl_names_the_headless_build(tmp_path):
    run = _run("cv2", folder=tmp_path)
    assert run.returncode == 0, run.stdout
    assert "opencv-python-headless" in run.stdout


def test_report_shows_remedies_only_where_something_is_wrong():
    text = report([Finding("a", "ok", "fine", "never shown"), Finding("b", "problem", "broken", "fix it")])
    assert "fix it" in text and "never shown" not in text
