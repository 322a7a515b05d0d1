"""What a DigitScenes folder holds, counted from its files."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .generate import SPLITS, annotation_file
from .scene import CLASS_NAMES, IGNORE, SEMANTIC_CLASSES

_COCO_SMALL = 32**2  # square pixels of mask; smaller objects count for APs, larger ones up to 96 ** 2 for APm


def split_statistics(root: str | os.PathLike, split: str) -> dict[str, Any]:
    """Counts, sizes (pixels) and shares (0..1) of one split of the folder ``root``."""
    content = json.loads(annotation_file(root, split).read_text(encoding="utf-8"))
    annotations = content["annotations"]
    count = Counter(annotation["category_id"] for annotation in annotations)
    pixels = np.zeros(256, np.int64)
    for path in sorted((Path(root) / "semantic" / split).glob("*.png")):
        pixels += np.bincount(np.asarray(Image.open(path)).ravel(), minlength=256)
    share = pixels / pixels.sum()
    return {
        "images": len(content["images"]),
        "instances": len(annotations),
        "instances per class": {name: count[number] for number, name in enumerate(CLASS_NAMES, 1)},
        "box height, 5/50/95 %": np.percentile([a["bbox"][3] for a in annotations], (5, 50, 95)).round().tolist(),
        "box width, 5/50/95 %": np.percentile([a["bbox"][2] for a in annotations], (5, 50, 95)).round().tolist(),
        "COCO small": round(np.mean([a["area"] < _COCO_SMALL for a in annotations]).item(), 3),
        "partly hidden": round(np.mean([a["visible"] < 1 for a in annotations]).item(), 3),
        "corners per mask": round(np.mean([sum(map(len, a["segmentation"])) / 2 for a in annotations]).item(), 1),
        "pixels": {name: round(share[number].item(), 3) for number, name in enumerate(SEMANTIC_CLASSES)},
        "pixels not labelled": round(share[IGNORE].item(), 3),
    }


def describe(root: str | os.PathLike) -> str:
    """``split_statistics`` of both splits as text, one line a number."""
    lines = []
    for split in SPLITS:
        lines.append(f"{split}:")
        for key, value in split_statistics(root, split).items():
            if isinstance(value, dict):
                value = ", ".join(f"{name} {number}" for name, number in value.items())
            lines.append(f"  {key}: {value}")
    return "\n".join(lines)
