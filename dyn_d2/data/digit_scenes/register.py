"""Registers DigitScenes with Detectron2's catalogs. Nothing is read until a data set is used."""

import os
from pathlib import Path
from typing import Any

from dyn_d2.data.parts import register_parts
from dyn_d2.hierarchy import load_hierarchy
from dyn_d2.utils.own_files import read_json_of

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from .generate import SPLITS, annotation_file
from .scene import CLASS_NAMES, IGNORE
from .variants import FINE, TREE, VARIANTS, label_set, map_folder

PREPARE_COMMAND = "dyn-d2 prepare digit-scenes"


def register_digit_scenes(root: str | os.PathLike | None = None, name: str = "digit_scenes") -> None:
    """Register ``{name}_train``, ``{name}_val`` (boxes, masks), ``{name}_train_sem``, ``{name}_val_sem`` (label maps),
    and ``{name}_VARIANT_train_sem``, ``{name}_VARIANT_val_sem`` of the label sets in ``variants.py``.

    Args:
        root: the folder that ``generate_digit_scenes`` made; default ``$DETECTRON2_DATASETS/digit_scenes``.
        name: prefix of the names. What is registered under them already is replaced.
    """
    if root is None:
        root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "digit_scenes"
    root = Path(os.path.expanduser(root))
    for split in SPLITS:
        dataset, json_file = f"{name}_{split}", annotation_file(root, split)
        image_root = str(root / "images" / split)
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
                "split": "train" if split == "train" else "test",
            },
        )
        if split == "train":
            register_parts(dataset, 0.2)
        _register_label_maps(f"{dataset}_sem", FINE, json_file, image_root, root / "semantic" / split)
        for variant, first in VARIANTS.items():
            own = slice(first, None, len(VARIANTS)) if split == "train" else slice(None)
            maps = map_folder(root, variant, split)
            _register_label_maps(f"{name}_{variant}_{split}_sem", label_set(variant), json_file, image_root, maps, own)


def _register_label_maps(
    dataset: str, labels: str, json_file: Path, image_root: str, maps: Path, own: slice = slice(None)
) -> None:
    """Of the label set ``labels``; ``own``: which of the images."""
    _register(
        dataset,
        lambda: load_label_maps(json_file, image_root, str(maps))[own],
        {
            "evaluator_type": "sem_seg",
            "image_root": image_root,
            "sem_seg_root": str(maps),
            "stuff_classes": list(load_hierarchy(TREE).labels(labels)),
            "ignore_label": IGNORE,
            "hierarchy": TREE,
            "label_set": labels,
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


def _is_image(image: Any) -> bool:
    if not isinstance(image, dict) or not isinstance(image.get("file_name"), str) or "id" not in image:
        return False
    return all(isinstance(image.get(side), int) and image[side] > 0 for side in ("height", "width"))


def load_label_maps(json_file: Path, image_root: str, sem_seg_root: str) -> list[dict[str, Any]]:
    """Records for semantic segmentation: file_name, sem_seg_file_name, image_id, height, width."""
    images = read_json_of(_existing(json_file), "annotations of DigitScenes").get("images")
    if not isinstance(images, list) or not all(_is_image(image) for image in images):
        raise ValueError(f"{json_file} has no list of images: make it anew with `{PREPARE_COMMAND} --overwrite`.")
    if not Path(sem_seg_root).is_dir():
        raise FileNotFoundError(
            f"{sem_seg_root} does not exist: `{PREPARE_COMMAND} --root {json_file.parents[1]}` adds it and "
            "keeps the rest."
        )
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
