"""dyn-d2 demo: images in, pictures and json out, with nothing but a checkpoint."""

import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image
from tiny_detection import CLASSES, save_detector

from dyn_d2.cli.demo import Writer, main, run
from dyn_d2.engine.predictor import Answer
from dyn_d2.evaluation.boxes_on_image import picture_names
from dyn_d2.evaluation.label_figures import LabelMap
from dyn_d2.evaluation.palette import class_colour
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
        (["--weights", "model_final.pth", "empty"], "no image or video in the folder empty"),
        (["--weights", "model_final.pth", "nothing*.png"], r"no file matches nothing\*.png"),
        (["--weights", "none.pth", "other/001.png"], "checkpoint none.pth does not exist"),
        (["--weights", ".", "other/001.png"], "checkpoint . is a folder: give its file model_final.pth"),
        (["--weights", "none.pth", "--output", "broken.png", "other/001.png"], "--output broken.png .* is a file"),
        (["--weights", "none.pth", "--output", "broken.png/x", "other/001.png"], "made: broken.png is a file. Give"),
    ],
)
def test_wrong_files_are_named(folder, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir(exist_ok=True)
    with pytest.raises((FileNotFoundError, ValueError, UserError), match=message):
        main(arguments)


@pytest.mark.parametrize("threshold", ["50", "-0.1", "nan", "half"])
def test_a_threshold_that_is_no_score_is_refused(threshold, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--weights", "none.pth", "--threshold", threshold, "none.png"])
    told = "invalid score value: 'half'" if threshold == "half" else f"{threshold} is no score: give a number from 0 to"
    assert told in capsys.readouterr().err


def test_where_nothing_is_readable_no_pictures_are_promised(folder, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    (folder / "kept").mkdir()
    (folder / "kept" / "detections.json").write_text("of before")
    with pytest.raises(UserError, match="1 of 1 images are unreadable: broken.png"):
        main(["broken.png", "--weights", "model_final.pth", "--output", "kept"])
    assert "pictures and" not in capsys.readouterr().out
    assert (folder / "kept" / "detections.json").read_text() == "of before"


def _video(file: Path, frames: int) -> None:
    video = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 5, (48, 32))
    for number in range(frames):
        video.write(np.full((32, 48, 3), 20 * number, np.uint8))
    video.release()


def test_folders_patterns_videos_and_addresses(folder, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    _video(folder / "clip.avi", 5)
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder / "other"))
    handler.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/001.png?size=1"
        sources = ["other", "data/images/*.png", "clip.avi", address, "other/001.png"]
        weights = ["--weights", "model_final.pth", "--output", "all", "--every", "2", "--batch", "2"]
        assert main([*sources, *weights]) == 0
        none = address.replace("001", "none")
        with pytest.raises(UserError, match=r"1 of 2 images are unreadable: .*/none\.png\?size=1"):
            main([none, "other/001.png", *weights, "--output", "partly"])
        assert list(json.loads((folder / "partly" / "detections.json").read_text())) == ["other/001.png"]
        server.shutdown()
    images = sorted(str(path.relative_to(folder)) for path in (folder / "data" / "images").glob("*.png"))
    frames = [f"clip.avi#{number}" for number in (0, 2, 4)]
    assert list(json.loads((folder / "all" / "detections.json").read_text())) == [
        "other/001.png", *images, *frames, address
    ]  # fmt: skip
    coco = json.loads((folder / "all" / "coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["other/001.png", *images, *frames, address]
    assert [category["name"] for category in coco["categories"]] == list(CLASSES)
    assert {a["image_id"] for a in coco["annotations"]} <= set(range(1, len(coco["images"]) + 1))
    drawn = cv2.VideoCapture(str(folder / "all" / "clip.mp4"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 3 and drawn.get(cv2.CAP_PROP_FRAME_WIDTH) == 480
    assert drawn.get(cv2.CAP_PROP_FPS) == 2.5  # 5 of the original, of which every second frame is shown


def test_pictures_never_replace_what_they_show(folder, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    before = (folder / "other" / "001.png").read_bytes()
    for output in ("other", "data/../other"):
        with pytest.raises(UserError, match="would overwrite .*001.png: name another folder"):
            main(["other", "--weights", "model_final.pth", "--output", output])
    assert (folder / "other" / "001.png").read_bytes() == before
    names = picture_names(["a/photo.jpg", "b/photo.jpg", "a/photo_1.jpg"])
    assert names == ["photo.png", "photo_1.png", "photo_1_1.png"]


def test_a_video_of_a_segmentor_has_all_frames_and_label_maps(tmp_path) -> None:
    """The legends of its frames differ in length, and so do the pictures."""
    _video(tmp_path / "clip.avi", 6)
    names = [str(number) for number in range(12)]

    def answer(images):
        found = []
        for image in images:
            level = round(image.mean() / 20)  # of the frame
            labels = np.arange(image[..., 0].size).reshape(image.shape[:2]) % (1, 12, 4)[level % 3]
            found.append(Answer([LabelMap("classes", labels, names, [class_colour(n) for n in range(12)])]))
        return found

    writer = Writer(SimpleNamespace(answer=answer, classes=names), tmp_path / "out", 0.5, 5)
    run(writer, [str(tmp_path / "clip.avi")])
    drawn = cv2.VideoCapture(str(tmp_path / "out" / "clip.mp4"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 6
    maps = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert maps == [f"clip_{frame}_classes.png" for frame in range(6)]
    with Image.open(tmp_path / "out" / "clip_1_classes.png") as second:
        assert second.getextrema() == (0, 11)
