"""Objects of a COCO json, cut out: as arrays, and as one folder a class."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from two_squares import COLOURS, write_boxes

from dyn_d2.cli.prepare_crops import main
from dyn_d2.data.object_crops import CropOptions, crops_of, cut
from dyn_d2.utils.errors import UserError


def test_crops_come_in_the_order_of_images(tmp_path) -> None:
    found = list(crops_of(write_boxes(tmp_path), tmp_path, CropOptions(size=20, context=0.0)))
    assert [(crop.name, crop.file) for crop in found] == [
        ("red", "1.png"), ("green", "1.png"), ("red", "2.png"), ("green", "2.png")
    ]  # fmt: skip
    for crop in found:
        assert crop.pixels.shape == (20, 20, 3) and np.array_equal(crop.pixels[10, 10], COLOURS[crop.name])


def test_context_stays_inside_the_image() -> None:
    image = np.arange(40 * 60 * 3, dtype=np.uint32).reshape(40, 60, 3).astype(np.uint8)
    whole = cut(image, [0, 0, 60, 40], CropOptions(size=32, context=0.0))
    assert np.array_equal(cut(image, [0, 0, 60, 40], CropOptions(size=32, context=0.5)), whole)
    assert not np.array_equal(cut(image, [20, 10, 20, 20], CropOptions(size=32, context=0.5)), whole)


def test_nothing_to_see(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no object of 99 pixels .*lower --least"):
        next(crops_of(write_boxes(tmp_path), tmp_path, CropOptions(least=99)))


def test_one_folder_a_class(tmp_path, capsys) -> None:
    options = ["--json", write_boxes(tmp_path), "--images", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main([*options, "--size", "16", "--context", "0"]) == 0
    assert "4 crops, green 2, red 2" in capsys.readouterr().out
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.jpg"))
    assert files == ["green/2.jpg", "green/6.jpg", "red/1.jpg", "red/5.jpg"]
    with Image.open(tmp_path / "out" / "red" / "1.jpg") as image:
        assert image.size == (16, 16) and np.allclose(np.asarray(image)[8, 8], COLOURS["red"], atol=8)
    with pytest.raises(UserError, match="out holds files already: name a new folder"):
        main([*options, "--size", "24"])  # would leave crops of two sizes


def test_names_that_are_no_folders_are_told(tmp_path) -> None:
    options = ["--json", write_boxes(tmp_path, ("../red", "green")), "--images", str(tmp_path)]
    with pytest.raises(UserError, match=r"'../red' is no name of a folder: rename the category"):
        main([*options, "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_box_outside_of_its_image_is_told_and_nothing_half_written_stays(tmp_path) -> None:
    file = Path(write_boxes(tmp_path))
    content = json.loads(file.read_text())
    last = max((a for a in content["annotations"] if a["id"] <= 2), key=lambda a: a["id"])
    last["bbox"][:2] = [5000, 5000]
    file.write_text(json.dumps(content))
    options = ["--json", str(file), "--images", str(tmp_path), "--output", str(tmp_path / "crops" / "out")]
    with pytest.raises(ValueError, match=r"annotation 2 lies outside of 2.png, which has \d+ x \d+ pixels"):
        main(options)
    assert not list((tmp_path / "crops").iterdir())
    with pytest.raises(UserError, match="boxes.json is a file: name a folder"):
        main([*options[:-1], str(file)])
