"""dyn-d2 demo: images in, pictures and json out, with nothing but a checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny_detection import CLASSES, save_detector

from dyn_d2.cli.demo import main
from dyn_d2.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    save_detector(folder)
    (folder / "data" / "instances.json").unlink()
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "other").mkdir()
    Image.new("RGB", (50, 40)).save(folder / "other" / "001.png")
    return folder


def _demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """In an empty folder: no config, no data sets."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DETECTRON2_DATASETS": str(folder / "nowhere")}
    command = [sys.executable, str(ROOT / "tools" / "demo.py"), "--output", "pictures", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_pictures_and_json_by_class_name(folder) -> None:
    images = ["data/images/001.png", "broken.png", "other/001.png"]
    run = _demo(folder, "--weights", "model_final.pth", "--threshold", "0.9999", "--top", "3", *images)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "1 of 3 images are unreadable: broken.png" in run.stderr and "Traceback" not in run.stderr
    assert "nothing reaches 0.9999; the best 3 are shown" in run.stdout
    found = json.loads((folder / "pictures" / "detections.json").read_text())
    assert list(found) == ["data/images/001.png", "other/001.png"]
    detections = found["data/images/001.png"]
    assert len(detections) > 3 and {d["class"] for d in detections} <= set(CLASSES)
    assert all(0 <= d["score"] <= 1 and len(d["box_xyxy"]) == 4 for d in detections)
    # Two images of one name give two pictures.
    for name in ("001.png", "001_1.png"):
        with Image.open(folder / "pictures" / name) as picture:
            assert max(picture.size) == 480


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "model_final.pth", "none.png"], "no such image: none.png"),
        (["--weights", "model_final.pth", "other"], r"other is a folder: give image files, such as other/\*.jpg"),
        (["--weights", "none.pth", "other/001.png"], "checkpoint none.pth does not exist"),
    ],
)
def test_wrong_files_are_named(folder, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises((FileNotFoundError, ValueError, UserError), match=message):
        main(arguments)
