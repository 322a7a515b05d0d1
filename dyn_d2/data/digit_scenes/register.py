"""Registers DigitScenes with Detectron2's catalogs. Nothing is read until a data set is used."""

import json
import os
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from .generate import SPLITS, annotation_file
from .scene import CLASS_NAMES, IGNORE, SEMANTIC_CLASSES

PREPARE_COMMAND = "python datasets/prepare_digit_scenes.py"


def register_digit_scenes(root: str | os.PathLike | None = None, name: str = "digit_scenes") -> None:
    """Register ``{name}_train``, ``{name}_val`` (boxes, masks), ``{name}_train_sem``, ``{name}_val_sem`` (label maps).

    Args:
        root: the folder that ``generate_digit_scenes`` made; default ``$DETECTRON2_DATASETS/digit_scenes``.
        name: prefix of the names. What is registered under them already is replaced.
    """
    if root is None:
        root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "digit_scenes"
    root = Path(os.path.expanduser(root))
    for split in SPLITS:
        dataset, json_file = f"{name}_{split}", annotation_file(root, split)
        image_root, sem_seg_root = str(root / "images" / split), str(root / "semantic" / split)
        _register(
            dataset,
            lambda json_file=json_file, image_root=image_root, dataset=dataset: load_coco_json(
                str(_existing(json_file)), image_root, dataset
            ),
            {
                "evaluator_type": "coco",
                "json_file": str(json_file),
                "image_root": image_root,
                "thing_classes": list(CLASS_NAMES),
                "thing_dataset_id_to_contiguous_id": {number + 1: number for number in range(len(CLASS_NAMES))},
                "prepare_command": PREPARE_COMMAND,
            },
        )
        _register(
            f"{dataset}_sem",
            lambda json_file=json_file, image_root=image_root, sem_seg_root=sem_seg_root: load_label_maps(
                json_file, image_root, sem_seg_root
            ),
            {
                "evaluator_type": "sem_seg",
                "image_root": image_root,
                "sem_seg_root": sem_seg_root,
                "stuff_classes": list(SEMANTIC_CLASSES),
                "ignore_label": IGNORE,
                "prepare_command": PREPARE_COMMAND,
            },
        )


def _register(name: str, load: Any, metadata: dict[str, Any]) -> None:
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)


def _existing(json_file: Path) -> Path:
    if not json_file.is_file():
        raise FileNotFoundError(
            f"DigitScenes is not there: {json_file} does not exist. Make it with `{PREPARE_COMMAND} --root "
            f"{json_file.parents[1]}`, or set DETECTRON2_DATASETS to the folder that holds digit_scenes/."
        )
    return json_file


def load_label_maps(json_file: Path, image_root: str, sem_seg_root: str) -> list[dict[str, Any]]:
    """Records for semantic segmentation: file_name, sem_seg_file_name, image_id, height, width."""
    images = json.loads(_existing(json_file).read_text(encoding="utf-8"))["images"]
    return [
        {
            "file_name": os.path.join(image_root, image["file_name"]),
            "sem_seg_file_name": os.path.join(sem_seg_root, Path(image["file_name"]).stem + ".png"),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
        }
        for image in images
    ]
