"""Folders as labelling tools leave them, of the coloured boxes of tiny_detection, for tests of one's own data."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from tiny_detection import CLASSES, write_boxes


def write_json_folder(folder: Path, images: int = 8) -> Path:
    """``instances.json`` and ``images``; returns the json."""
    return write_boxes(folder, images)


def write_yolo_folder(folder: Path, images: int = 8, polygons: bool = False) -> Path:
    """``images/train``, ``labels/train``, the same of val, and data.yaml; returns ``folder``."""
    content = json.loads(write_boxes(folder / "source", images).read_text())
    for part in ("train", "val"):
        (folder / "images" / part).mkdir(parents=True)
        (folder / "labels" / part).mkdir(parents=True)
        for image in content["images"]:
            with Image.open(folder / "source" / "images" / image["file_name"]) as pixels:
                pixels.save(folder / "images" / part / image["file_name"])
            own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            lines = [yolo_line(a, image["width"], image["height"], polygons) for a in own]
            (folder / "labels" / part / image["file_name"]).with_suffix(".txt").write_text("\n".join(lines) + "\n")
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(CLASSES))
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n{names}")
    return folder


def yolo_line(annotation: dict, width: int, height: int, polygon: bool) -> str:
    """A line of a txt: the class from 0, and the box or the polygon in shares of the sides."""
    x, y, w, h = annotation["bbox"]
    box = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
    points = [p / (height if i % 2 else width) for i, p in enumerate(annotation["segmentation"][0])]
    return " ".join(map(str, [annotation["category_id"] - 1, *(points if polygon else box)]))


def write_voc_folder(folder: Path, images: int = 8, suffix: str = ".jpg") -> Path:
    """JPEGImages, Annotations, and ImageSets/Main with trainval and test; returns ``folder``."""
    content = json.loads(write_boxes(folder / "source", images).read_text())
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for image in content["images"]:
        stem = Path(image["file_name"]).stem
        with Image.open(folder / "source" / "images" / image["file_name"]) as pixels:
            pixels.save(folder / "JPEGImages" / f"{stem}{suffix}", quality=95)
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        (folder / "Annotations" / f"{stem}.xml").write_text(voc_xml(f"{stem}{suffix}", image, own))
    stems = [Path(image["file_name"]).stem for image in content["images"]]
    for split in ("trainval", "test"):
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    return folder


def voc_xml(name: str, image: dict, annotations: list[dict]) -> str:
    """VOC's xml of an image; boxes count pixels from 1."""
    objects = ""
    for a in annotations:
        x, y, w, h = a["bbox"]
        sides = zip(("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + w, y + h), strict=True)
        box = "".join(f"<{tag}>{side}</{tag}>" for tag, side in sides)
        objects += f"<object><name>{CLASSES[a['category_id'] - 1]}</name><bndbox>{box}</bndbox></object>"
    size = f"<width>{image['width']}</width><height>{image['height']}</height><depth>3</depth>"
    return f"<annotation><filename>{name}</filename><size>{size}</size>{objects}</annotation>"


SEMANTIC = ("floor", "red", "green", "blue", "yellow")
TREE = """concepts:
  all: [floor, warm, cold]
  warm: [red, yellow]
  cold: [green, blue]
datasets:
  boxes: {floor: floor, red: red, green: green, blue: blue, yellow: yellow}
"""


def write_label_folder(folder: Path, images: int = 6) -> Path:
    """``images``, ``labels`` (0: floor, boxes from 1, a frame of 255) and tree.yaml; returns ``folder``."""
    content = json.loads(write_boxes(folder, images).read_text())
    (folder / "labels").mkdir()
    for image in content["images"]:
        labels = np.zeros((image["height"], image["width"]), np.uint8)
        for a in (a for a in content["annotations"] if a["image_id"] == image["id"]):
            x, y, w, h = a["bbox"]
            labels[y : y + h, x : x + w] = a["category_id"]
        labels[:2] = 255
        Image.fromarray(labels).save(folder / "labels" / image["file_name"])
    (folder / "tree.yaml").write_text(TREE)
    return folder


def write_class_folders(folder: Path, images: int = 6) -> Path:
    """``train`` and ``test``, each with one folder a class of small images; returns ``folder``."""
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for name, colour in (("dark", 40), ("bright", 200)):
            (folder / part / name).mkdir(parents=True)
            for number in range(images):
                pixels = generator.integers(-30, 30, (16, 16, 3)) + colour
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name / f"{number}.png")
    return folder


def write_labelme_folder(folder: Path, images: int = 8) -> Path:
    """Images, and LabelMe's json beside each; returns ``folder``."""
    content = json.loads(write_boxes(folder / "source", images).read_text())
    for image in content["images"]:
        (folder / "source" / "images" / image["file_name"]).rename(folder / image["file_name"])
        shapes = []
        for a in (a for a in content["annotations"] if a["image_id"] == image["id"]):
            x, y, w, h = a["bbox"]
            shape = {"label": CLASSES[a["category_id"] - 1], "points": [[x, y], [x + w, y + h]], "group_id": None}
            shapes.append({**shape, "shape_type": "rectangle"})
        about = {"imagePath": image["file_name"], "imageWidth": image["width"], "imageHeight": image["height"]}
        (folder / image["file_name"]).with_suffix(".json").write_text(json.dumps({"shapes": shapes, **about}))
    (folder / "source" / "instances.json").unlink()
    return folder
