"""A COCO json of two images with boxes and masks that nothing is wrong with, and its images."""

import copy
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dyn_d2.config import add_dyn_d2_config
from dyn_d2.data.few_shot.sources import forget
from dyn_d2.evaluation.perfect import PerfectScore, perfect_score

from detectron2.config import CfgNode, get_cfg
from detectron2.data.datasets import register_coco_instances, register_lvis_instances

WIDTH, HEIGHT = 40, 30
NAMES = ("ant", "bee")

Content = dict[str, Any]


def content() -> Content:
    """Six objects of two classes in two images; boxes are rectangles, and their masks the same."""
    boxes = [[2, 3, 10, 8], [15, 4, 12, 12], [20, 18, 9, 10], [1, 1, 8, 20], [12, 6, 20, 9], [25, 17, 11, 11]]
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in (1, 2)],
        "categories": [{"id": i, "name": name} for i, name in zip((1, 2), NAMES, strict=True)],
        "annotations": [
            {
                "id": i + 1,
                "image_id": i // 3 + 1,
                "category_id": i % 2 + 1,
                "bbox": [float(side) for side in (x, y, w, h)],
                "area": float(w * h),
                "iscrowd": 0,
                "segmentation": [[float(s) for s in (x, y, x + w, y, x + w, y + h, x, y + h)]],
            }
            for i, (x, y, w, h) in enumerate(boxes)
        ],
    }


def write(folder: Path, value: Any, images: bool = True) -> str:
    """Write the json and the images; returns the path of the json."""
    folder.mkdir(parents=True, exist_ok=True)
    for image_id in (1, 2) if images else ():
        pixels = np.random.default_rng(image_id).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{image_id}.png")
    path = folder / "truth.json"
    path.write_text(json.dumps(value))
    return str(path)


def config(masks: bool = False) -> CfgNode:
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    cfg.MODEL.MASK_ON = masks
    return cfg


def register(path: str, kind: str = "coco") -> str:
    """Register a json under a new name, as users do."""
    name = f"toy_{uuid.uuid4().hex}"
    registrars = {"coco": register_coco_instances, "lvis": register_lvis_instances}
    registrars[kind](name, {}, path, str(Path(path).parent))
    return name


def score(path: str, masks: bool = False, kind: str = "coco") -> PerfectScore:
    """What perfect predictions of a json score."""
    name = register(path, kind)
    try:
        return perfect_score(name, config(masks))
    finally:
        forget(name)


def changed(change: Any) -> Content:
    """The content after ``change`` has been called with it."""
    value = copy.deepcopy(content())
    change(value)
    return value


def put(position: int, **values: Any) -> Any:
    """A change: set fields of the annotation at ``position``."""
    return lambda value: value["annotations"][position].update(values)


def put_all(**values: Any) -> Any:
    """A change: set fields of all annotations."""
    return lambda value: [annotation.update(values) for annotation in value["annotations"]]
