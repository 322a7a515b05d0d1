"""The package builds where torch is not installed, and holds all that it needs."""

import subprocess
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_wheel_builds_in_an_empty_environment(tmp_path):
    environment = tmp_path / "empty"
    venv.create(environment, with_pip=True)
    source = tmp_path / "source"
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in files.stdout.split():
        if name.startswith(("dyn_d2/", "setup.py", "pyproject.toml", "README.md")) and (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    python = environment / "bin" / "python"
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode != 0
    build = subprocess.run(
        [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "wheels", source],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert build.returncode == 0, build.stderr[-2000:]
    (wheel,) = (tmp_path / "wheels").glob("dyn_d2-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "dyn_d2/embedded/detectron2/modeling/meta_arch/rcnn.py" in names
    assert "dyn_d2/embedded/detectron2/model_zoo/configs/Base-RCNN-FPN.yaml" in names
    assert "dyn_d2/data/digit_scenes/photo_regions.json" in names
    assert "dyn_d2/hierarchy/trees/universal.yaml" in names
    for end in (".cpp", ".h", ".cu", "_kernels.cuh"):
        assert f"dyn_d2/ops/message_passing/message_passing{end}" in names
    assert not [name for name in names if name.startswith(("tests", "tools"))]


def test_too_old_python_and_missing_python_end_in_one_line(tmp_path):
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\ncase "$*" in --version) echo "Python 3.8.1";; *) exit 1;; esac\n')
    old.chmod(0o755)
    for python, message in ((old, "Python 3.8.1 is too old"), (tmp_path / "nowhere", "was not found")):
        run = subprocess.run(
            ["bash", ROOT / "tools" / "make_venv.sh"],
            env={"PYTHON": str(python), "VENV": str(tmp_path / "venv"), "PATH": "/usr/bin:/bin"},
            capture_output=True, text=True,
        )  # fmt: skip
        assert run.returncode == 1 and message in run.stderr and len(run.stderr.splitlines()) == 1
