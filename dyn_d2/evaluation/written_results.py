"""What a model found in images, as files that other tools read: COCO json with masks, label maps as PNG."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from dyn_d2.utils.atomic import atomic_write

from detectron2.structures import Instances

from .label_figures import LabelMap


class CocoFile:
    """A COCO json that grows image by image: "images", "categories", and "annotations" with scores."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]

    def add(self, file_name: str, found: Instances) -> None:
        """The detections of one image, in its frame; masks as compressed RLE."""
        height, width = found.image_size
        image_id = len(self.images) + 1
        self.images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        masks = np.asarray(found.pred_masks) if found.has("pred_masks") else None
        rows = zip(found.pred_boxes.tensor.tolist(), found.scores.tolist(), found.pred_classes.tolist(), strict=True)
        for number, ((x0, y0, x1, y1), score, label) in enumerate(rows):
            entry = {
                "id": len(self.annotations) + 1,
                "image_id": image_id,
                "category_id": label + 1,
                "bbox": [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)],
                "area": round((x1 - x0) * (y1 - y0), 2),
                "score": round(score, 5),
                "iscrowd": 0,
            }
            if masks is not None:
                code = coco_mask.encode(np.asfortranarray(masks[number], dtype=np.uint8))
                entry["area"] = int(masks[number].sum())
                entry["segmentation"] = {"size": code["size"], "counts": code["counts"].decode("ascii")}
            self.annotations.append(entry)

    def content(self) -> dict[str, Any]:
        """The file's."""
        return {"images": self.images, "categories": self.categories, "annotations": self.annotations}


def write_label_maps(maps: Sequence[LabelMap], folder: Path, stem: str) -> list[str]:
    """A PNG a map, each pixel its label's number (16 bits where there are more than 256); returns the names."""
    names = []
    for labels in maps:
        image = Image.fromarray(labels.pixels())
        names.append(f"{stem}_{re.sub(r'[^A-Za-z0-9]+', '-', labels.title).strip('-') or 'labels'}.png")
        with atomic_write(folder / names[-1], "wb") as file:
            image.save(file, format="png")
    return names


def route_as_json(route: Any) -> dict[str, Any]:
    """Which units of a dynamic network were open for an image, and multiply-adds: executed, of gates, of all units."""
    opened = {
        name: bool(each[0]) if len(each) == 1 else np.flatnonzero(each).tolist() for name, each in route.open.items()
    }
    return {
        "executed": route.executed,
        "gates": route.gates,
        "dense": route.dense,
        "open": opened,
    }
