"""Classes of COCO and Cityscapes, so that models of these data sets can be used without having the data.

Sources: COCO panoptic categories (cocodataset/panopticapi), Cityscapes labels (mcordts/cityscapesScripts).
"""

from pathlib import Path
from typing import Any

import yaml

_TABLES = yaml.safe_load(Path(__file__).with_name("categories.yaml").read_text(encoding="utf-8"))


def _parse(table: str, **common: Any) -> list[dict[str, Any]]:
    categories = []
    for entry in _TABLES[table].split(";"):
        number, *words, colour = entry.split()
        categories.append({"id": int(number), "name": " ".join(words), "color": list(bytes.fromhex(colour)), **common})
    return categories


COCO_CATEGORIES = _parse("coco_things", isthing=1) + _parse("coco_stuff", isthing=0)
CITYSCAPES_CATEGORIES = [
    # Things have the larger ids.
    category | {"trainId": i, "color": tuple(category["color"]), "isthing": int(category["id"] >= 24)}
    for i, category in enumerate(_parse("cityscapes"))
]


def _get_coco_instances_meta() -> dict[str, Any]:
    """The 80 thing classes; ids of the json files (1 to 90, with gaps) map to 0 to 79."""
    things = [c for c in COCO_CATEGORIES if c["isthing"]]
    return {
        "thing_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(things)},
        "thing_classes": [c["name"] for c in things],
        "thing_colors": [c["color"] for c in things],
    }


def _get_coco_panoptic_separated_meta() -> dict[str, Any]:
    """The things, and for semantic heads 54 classes: 0 is any thing, then the 53 kinds of stuff."""
    stuff = [c for c in COCO_CATEGORIES if not c["isthing"]]
    return _get_coco_instances_meta() | {
        "stuff_dataset_id_to_contiguous_id": {c["id"]: i for i, c in enumerate(stuff, start=1)} | {0: 0},
        "stuff_classes": ["things"] + [c["name"].replace("-other", "").replace("-merged", "") for c in stuff],
        "stuff_colors": [[82, 18, 128]] + [c["color"] for c in stuff],
    }


def _get_builtin_metadata(dataset_name: str) -> dict[str, Any]:
    """Metadata of "coco", "coco_panoptic_separated" or "cityscapes"; KeyError for another name."""
    if dataset_name == "coco":
        return _get_coco_instances_meta()
    if dataset_name == "coco_panoptic_separated":
        return _get_coco_panoptic_separated_meta()
    if dataset_name == "cityscapes":
        return {
            "thing_classes": [c["name"] for c in CITYSCAPES_CATEGORIES if c["isthing"]],
            "stuff_classes": [c["name"] for c in CITYSCAPES_CATEGORIES],
        }
    raise KeyError(f"No built-in metadata for dataset {dataset_name}")
