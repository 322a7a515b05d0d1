"""Writers of tiny data sets in COCO's and VOC's format."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 40, 30


def write_image(path: Path, width: int = WIDTH, height: int = HEIGHT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.randint(0, 255, (height, width, 3), dtype=np.uint8)).save(path)


def coco_content(names: list[str], objects: list[list[str]]) -> dict[str, Any]:
    """One image for each list of class names, one box for each name; category ids have gaps and are unsorted."""
    ids = {name: 10 * (position + 1) for position, name in enumerate(names)}
    annotations = []
    for image_id, image_objects in enumerate(objects, 1):
        for position, name in enumerate(image_objects):
            annotations.append(
                {
                    "id": 1000 + len(annotations),
                    "image_id": image_id,
                    "category_id": ids[name],
                    "bbox": [1 + 5 * position, 2, 5 + position, 6],
                    "iscrowd": 0,
                    "area": (5 + position) * 6,
                }
            )
    return {
        "images": [
            {"id": i, "file_name": f"{i:03d}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(1, len(objects) + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": ids[name], "name": name} for name in reversed(names)],
    }


VocObject = tuple[str, tuple[int, int, int, int], int]  # class, xmin ymin xmax ymax as in the file, difficult


def write_voc(folder: Path, split: str, images: dict[str, list[VocObject]]) -> None:
    """Write one image set of a VOC folder."""
    for image_id, objects in images.items():
        write_image(folder / "JPEGImages" / f"{image_id}.jpg")
        root = ET.Element("annotation")
        size = ET.SubElement(root, "size")
        ET.SubElement(size, "width").text, ET.SubElement(size, "height").text = str(WIDTH), str(HEIGHT)
        for name, box, difficult in objects:
            item = ET.SubElement(root, "object")
            for tag, text in (("name", name), ("difficult", difficult), ("truncated", 0), ("pose", "Left")):
                ET.SubElement(item, tag).text = str(text)
            bounds = ET.SubElement(item, "bndbox")
            for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
                ET.SubElement(bounds, tag).text = str(value)
        path = folder / "Annotations" / f"{image_id}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        ET.ElementTree(root).write(path)
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(images) + "\n")
