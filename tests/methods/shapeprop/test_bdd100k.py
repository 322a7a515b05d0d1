"""BDD100K: merging of tiny files in the published format."""

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from dyn_d2.data.check import check_coco_json
from dyn_d2.methods.shapeprop.bdd100k import CLASSES, annotation_file, flatten_curve, prepare, register_bdd100k
from dyn_d2.methods.shapeprop.cli.prepare_bdd100k import main

from detectron2.data import DatasetCatalog, MetadataCatalog

WIDTH, HEIGHT = 40, 24
RIDER, CAR = 2, 3
TRUNCATED, CROWD, IGNORE = 8, 2, 1


def frame(name: str, *labels: dict) -> dict:
    return {"name": f"{name}.jpg", "attributes": {"weather": "clear"}, "timestamp": 10000, "labels": list(labels)}


def box(category: str, x1: float, y1: float, x2: float, y2: float, **attributes) -> dict:
    corners = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    return {"id": "7", "category": category, "attributes": attributes, "box2d": corners}


def polygon(category: str, *parts: tuple[list, str], **attributes) -> dict:
    poly2d = [{"vertices": vertices, "types": types, "closed": True} for vertices, types in parts]
    return {"id": "8", "category": category, "attributes": attributes, "poly2d": poly2d}


def bitmask(*objects: tuple[int, int, int, tuple[slice, slice]]) -> Image.Image:
    """Objects as category, attributes, instance, pixels."""
    pixels = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    for category, attributes, instance, where in objects:
        pixels[where] = (category, attributes, instance >> 8, instance & 255)
    return Image.fromarray(pixels, "RGBA")


@pytest.fixture
def root(tmp_path) -> Path:
    """Image "both" has boxes and masks; "other" is a training image here and a validation image there."""
    root = tmp_path / "bdd100k"
    files = {"100k/train": ["boxes", "both", "other", "empty"], "10k/train": ["both", "only"], "10k/val": ["other"]}
    for folder, names in files.items():
        (root / "images" / folder).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images" / folder / f"{name}.jpg")
    labels = [
        frame("boxes", box("person", 1, 2, 11.5, 20), box("traffic light", 1, 1, 3, 3), box("trailer", 20, 4, 39, 20),
              box("motor", 5, 5, 9, 9, crowd=True), box("car", 7, 7, 7, 9)),
        frame("both", box("car", 0, 0, 5, 5)),
        frame("other", box("bus", 0, 0, 5, 5)),
        {"name": "empty.jpg", "labels": None},
    ]  # fmt: skip
    (root / "labels/det_20").mkdir(parents=True)
    (root / "labels/det_20/det_train.json").write_text(json.dumps(labels))
    upper, lower, right = np.s_[2:8, 3:13], np.s_[10:20, 3:13], np.s_[2:20, 20:39]
    masks = {
        "train/both": bitmask((CAR, TRUNCATED, 1, upper), (CAR, 0, 300, lower), (CAR, CROWD, 3, right)),
        "train/only": bitmask((RIDER, IGNORE, 1, lower)),
        "val/other": bitmask((RIDER, 0, 1, right)),
    }
    for name, image in masks.items():
        path = root / "labels/ins_seg/bitmasks" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return root


def read(root: Path, split: str) -> dict[str, list[dict]]:
    """File name -> annotations."""
    path = annotation_file(root, split)
    report = check_coco_json(str(path), str(root / "images"))
    report.tolerate(["all_crowd"])  # the toy's only annotation of "val"
    assert report.ok, report.problems
    content = json.loads(path.read_text())
    assert [c["name"] for c in content["categories"]] == list(CLASSES)
    return {i["file_name"]: [a for a in content["annotations"] if a["image_id"] == i["id"]] for i in content["images"]}


def decoded(annotation: dict) -> np.ndarray:
    return mask_util.decode(annotation["segmentation"]).astype(bool)


def test_labels_are_merged(root) -> None:
    counts = prepare(root)
    assert counts["train"] == {"images": 4, "objects": 7, "masks": 4, "images with instance labels": 2}
    assert counts["val"] == {"images": 1, "objects": 1, "masks": 1, "images with instance labels": 1}
    train = read(root, "train")
    assert train.keys() == {"10k/train/both.jpg", "10k/train/only.jpg", "100k/train/boxes.jpg", "100k/train/empty.jpg"}
    boxes = [(CLASSES[a["category_id"] - 1], a["iscrowd"], a["bbox"]) for a in train["100k/train/boxes.jpg"]]
    assert boxes == [
        ("pedestrian", 0, [1, 2, 10.5, 18]),
        ("truck", 1, [20, 4, 19, 16]),
        ("motorcycle", 1, [5, 5, 4, 4]),
    ]
    assert not any("segmentation" in a for a in train["100k/train/boxes.jpg"])
    found = sorted(train["10k/train/both.jpg"], key=lambda a: (a["bbox"][0], a["bbox"][1]))
    assert [(a["category_id"], a["iscrowd"], a["area"]) for a in found] == [(CAR, 0, 60), (CAR, 0, 100), (CAR, 1, 342)]
    assert found[0]["bbox"] == [3, 2, 10, 6] and decoded(found[0])[2:8, 3:13].all() and decoded(found[0]).sum() == 60
    assert [a["iscrowd"] for a in train["10k/train/only.jpg"]] == [1]
    assert [a["category_id"] for a in read(root, "val")["10k/val/other.jpg"]] == [RIDER]


def test_polygons_in_place_of_bitmasks(root) -> None:
    square, hook = [[3, 2], [13, 2], [13, 8], [3, 8]], [[20, 2], [30, 2], [30, 20], [20, 20]]
    folder = root / "labels/ins_seg/polygons"
    folder.mkdir()
    two_parts = polygon("van", (square, "LLLL"), (hook, "LLLL"))
    content = {
        "train": [frame("both", two_parts, polygon("traffic sign", (square, "LLLL"))),
                  frame("only", polygon("other person", (square, "LLLL")), polygon("bus", ([[1, 1], [2, 2]], "LL")))],
        "val": [frame("other", polygon("rider", (square, "LLLL"), crowd=True))],
    }  # fmt: skip
    for split, frames in content.items():
        (folder / f"ins_seg_{split}.json").write_text(json.dumps(frames))
    prepare(root, "polygons")
    (car,) = read(root, "train")["10k/train/both.jpg"]
    assert car["category_id"] == CAR and decoded(car)[2:8, 3:13].all() and decoded(car)[2:20, 20:30].all()
    assert car["area"] == 60 + 180 == decoded(car).sum()
    assert [(a["category_id"], a["iscrowd"]) for a in read(root, "train")["10k/train/only.jpg"]] == [(1, 1)]
    assert [a["iscrowd"] for a in read(root, "val")["10k/val/other.jpg"]] == [1]


def test_curves_are_followed() -> None:
    """A circle of four Bezier curves, as they are usually drawn, has the area of a circle."""
    k, r, c = 0.5523, 10.0, 15.0
    corners = [(r, 0), (0, r), (-r, 0), (0, -r)]
    vertices = [[c + r, c]]
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        vertices += [[c + x0 + k * x1, c + y0 + k * y1], [c + x1 + k * x0, c + y1 + k * y0], [c + x1, c + y1]]
    points = np.array(flatten_curve(vertices, "L" + "CCC" * 4)).reshape(-1, 2)
    np.testing.assert_allclose(np.hypot(*(points - c).T), r, rtol=0.01)
    x, y = points.T
    assert abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2 == pytest.approx(np.pi * r**2, rel=0.02)


def test_registered_sets(root) -> None:
    prepare(root)
    try:
        register_bdd100k(root)
        sizes = {name: len(DatasetCatalog.get(f"bdd100k_{name}")) for name in ("train", "train_masks", "val")}
        assert sizes == {"train": 4, "train_masks": 2, "val": 1}
        assert MetadataCatalog.get("bdd100k_val").evaluator_type == "coco"
        assert Path(DatasetCatalog.get("bdd100k_val")[0]["file_name"]).is_file()
        annotation_file(root, "val").unlink()
        with pytest.raises(FileNotFoundError, match="prepare bdd100k"):
            DatasetCatalog.get("bdd100k_val")
    finally:
        register_bdd100k()


def test_what_is_missing_is_listed_with_its_package(root, tmp_path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        prepare(tmp_path / "nowhere")
    for package in ("Detection 2020 Labels", "100K Images", "10K Images", "Instance Segmentation"):
        assert f"'{package}'" in str(caught.value)
    with pytest.raises(FileNotFoundError, match="ins_seg_val.json .package 'Instance Segmentation'") as caught:
        prepare(root, "polygons")
    assert "100K Images" not in str(caught.value)
    (root / "images/10k/train/only.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="only.jpg has labels, but does not exist"):
        prepare(root)


def test_files_of_another_format_are_named(root) -> None:
    path = root / "labels/ins_seg/bitmasks/train/only.png"
    bitmask((11, 0, 1, np.s_[:3, :3])).save(path)
    with pytest.raises(ValueError, match="only.png has category 11"):
        prepare(root)
    Image.new("L", (WIDTH, HEIGHT)).save(path)
    with pytest.raises(ValueError, match="only.png is L, not RGBA"):
        prepare(root)
    bitmask().save(path)
    labels = root / "labels/det_20/det_train.json"
    labels.write_text(json.dumps([frame("boxes", box("tram", 0, 0, 5, 5))]))
    with pytest.raises(ValueError, match="boxes.jpg: unknown category 'tram'"):
        prepare(root)
    labels.write_text("[3]")
    with pytest.raises(ValueError, match="det_train.json is no list of labelled frames"):
        prepare(root)


def test_command_line(root, capsys) -> None:
    assert main(["--root", str(root)]) == 0
    assert "4 images, 7 objects, 4 masks, 2 images with instance labels" in capsys.readouterr().out
