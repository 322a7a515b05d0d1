"""The package builds where torch is not installed, holds all that it needs, and works without a checkout."""

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("dyn_d2/", "configs/", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CHANGELOG.md")
SMALL = [
    "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "INPUT.MIN_SIZE_TRAIN", "(96,)",
    "INPUT.MIN_SIZE_TEST", "96", "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "32",
    "MODEL.DEVICE", "cpu", "FEW_SHOT.FINETUNE.MAX_ITER", "2",
    "FEW_SHOT.BASE.MAX_ITER", "2", "FEW_SHOT.BASE.STEPS", "[]",
]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """What git would have of the files that the package is built from."""
    folder = tmp_path_factory.mktemp("source")
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in files.stdout.split():
        if name.startswith(SOURCES) and (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    return folder


def test_all_has_every_extra_but_those_that_its_comment_names():
    text = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    comment, everything = re.search(r'((?:# .*\n)*)all = \["dyn_d2\[(.*)\]"\]', text).groups()
    named = set(re.findall(r"^(\w+) = ", text, re.MULTILINE)) - {"all", "test", "dev", "docs", "timm"}  # of pretrained
    missing = named - set(everything.split(","))
    assert missing == {"albumentations", "convert", "fiftyone"} and all(name in comment for name in missing)


def _build(python: Path | str, source: Path, wheels: Path, *options: str) -> Path:
    build = subprocess.run(
        [python, "-m", "pip", "wheel", "--quiet", "--no-deps", *options, "--wheel-dir", wheels, source],
        capture_output=True, text=True, cwd=wheels.parent,
    )  # fmt: skip
    assert build.returncode == 0, build.stderr[-2000:]
    (wheel,) = wheels.glob("dyn_d2-*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(source, tmp_path_factory) -> Path:
    """A folder that the wheel is installed into; what it depends on is this environment's."""
    folder = tmp_path_factory.mktemp("installed")
    wheel = _build(sys.executable, source, folder / "wheels", "--no-build-isolation")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder / "site", wheel]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return folder / "site"


class Program:
    """dyn-d2 of the installed wheel, in an empty folder without data."""

    def __init__(self, site: Path, folder: Path) -> None:
        self.folder, self._site = folder, site
        self._env = {key: value for key, value in os.environ.items() if key != "DETECTRON2_DATASETS"}
        self._env |= {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def __call__(self, *arguments: str, by: tuple[str, ...] | None = None) -> subprocess.CompletedProcess:
        command = [sys.executable, *(by or (str(self._site / "bin" / "dyn-d2"),)), *arguments]
        return subprocess.run(command, cwd=self.folder, env=self._env, capture_output=True, text=True, timeout=300)


@pytest.fixture
def program(installed, tmp_path) -> Program:
    return Program(installed, tmp_path)


@pytest.mark.slow
def test_wheel_builds_in_an_empty_environment(source, tmp_path):
    environment = tmp_path / "empty"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode != 0
    (tmp_path / "wheels").mkdir()
    names = set(zipfile.ZipFile(_build(python, source, tmp_path / "wheels")).namelist())
    assert "dyn_d2/embedded/detectron2/modeling/meta_arch/rcnn.py" in names
    assert "dyn_d2/embedded/detectron2/model_zoo/configs/Base-RCNN-FPN.yaml" in names
    assert "dyn_d2/data/digit_scenes/photo_regions.json" in names
    assert "dyn_d2/hierarchy/trees/universal.yaml" in names and "dyn_d2/py.typed" in names
    for end in (".cpp", ".h", ".cu", "_kernels.cuh"):
        assert f"dyn_d2/ops/message_passing/message_passing{end}" in names
    configs = {f"dyn_d2/configs/{path.relative_to(ROOT / 'configs')}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert {name for name in names if name.startswith("dyn_d2/configs/")} == configs
    assert not [name for name in names if name.startswith(("tests", "tools", "configs"))]
    assert [name for name in names if name.endswith("LICENSE")]


def test_help_and_configs_of_the_wheel(program, installed):
    run = program("--help")
    assert run.returncode == 0 and len(run.stdout.splitlines()) <= 32, run.stderr
    assert program("--help", by=("-m", "dyn_d2")).stdout == run.stdout
    run = program("configs", "tfa/lvis", "--paths")
    assert run.stdout.strip() == str(installed / "dyn_d2" / "configs" / "TFA" / "lvis.yaml"), run.stderr


def test_train_by_name_says_what_data_it_needs(program):
    run = program("train", "--config-file", "TFA/digit_scenes.yaml", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", "out")
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "dyn-d2 train: " in run.stderr and "`dyn-d2 prepare digit-scenes" in run.stderr
    run = program("train", "--config-file", "TFA/digit_scene.yaml")
    assert run.returncode == 1 and "did you mean TFA/digit_scenes.yaml" in run.stderr


@pytest.mark.slow
def test_few_shot_training_without_a_checkout(program):
    """Data, base model, fine-tuning, pictures, two processes: in a folder that was empty."""
    run = program("prepare", "digit-scenes", "--num-train", "48", "--num-val", "4", "--quiet")
    assert run.returncode == 0, run.stderr[-2000:]
    named = ("--config-file", "TFA/digit_scenes")
    run = program("few-shot", *named, *SMALL, "FEW_SHOT.SHOTS", "1", "OUTPUT_DIR", "out")
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    weights = "out/tfa_cos_split1_1shot_seed0/model_final.pth"
    Image.new("RGB", (64, 64)).save(program.folder / "photo.png")
    run = program("demo", "--weights", weights, "--output", "pictures", "photo.png")
    assert run.returncode == 0 and (program.folder / "pictures" / "photo.png").is_file(), run.stderr[-2000:]
    two = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dyn_d2")
    run = program("train", *named, *SMALL, "OUTPUT_DIR", "two", by=two)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]


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
