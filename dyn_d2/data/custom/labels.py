"""Label maps, with or without a concept tree, and images in one folder a class."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from dyn_d2.data.classification.recipes import recipe_of
from dyn_d2.data.classification.sets import ensure_classes, register_folders
from dyn_d2.data.few_shot.sources import forget
from dyn_d2.data.parts import TEST, register_parts
from dyn_d2.data.semantic.label_maps import load_pairs
from dyn_d2.hierarchy import Hierarchy, load_hierarchy

from detectron2.data import DatasetCatalog, MetadataCatalog

from .boxes import require, same_classes
from .keys import KEY, CustomData
from .yolo import image_size


def register_label_maps(data: CustomData, files: bool) -> tuple[str, ...]:
    """Returns the classes: CLASSES, or the labels of the tree."""
    classes, tree = data.classes, load_hierarchy(data.tree) if data.tree else None
    label_set = _label_set(data, tree) if tree else ""
    if tree:
        classes = tuple(classes) or tuple(tree.labels(label_set))
        tree.check_labels(label_set, list(classes))
    if len(classes) > 255 or data.ignore in range(len(classes)):
        raise ValueError(
            f"{KEY}: {len(classes)} CLASSES count from 0, and IGNORE {data.ignore} has to be another value of 8 bits."
        )
    for part in data.parts:
        name, maps, images = data.name_of(part), data.path(part), data.image_folder(part)
        if files:
            require({f"{KEY}.{part.upper()}": maps, f"{KEY}.{part.upper()}_IMAGES": images})
        forget(name)
        DatasetCatalog.register(name, partial(load_sized_pairs, str(images), str(maps)))
        MetadataCatalog.get(name).set(
            evaluator_type="sem_seg",
            image_root=str(images),
            sem_seg_root=str(maps),
            stuff_classes=list(classes),
            ignore_label=data.ignore,
            **({"hierarchy": data.tree, "label_set": label_set} if tree else {}),
        )
    return tuple(classes)


def load_sized_pairs(images: str, maps: str) -> list[dict[str, Any]]:
    """Records of ``load_pairs`` with the sizes of the images, which batches are grouped by."""
    records = load_pairs(images, maps, "")
    for record in records:
        record["width"], record["height"] = image_size(Path(record["file_name"]))
    return records


def _label_set(data: CustomData, tree: Hierarchy) -> str:
    """Which of a tree's data sets has the labels.

    Raises:
        ValueError: none, or several.
    """
    if data.label_set:
        tree.labels(data.label_set)  # complains where there is none
        return data.label_set
    fitting = [d for d in tree.datasets if not data.classes or set(tree.labels(d)) == set(data.classes)]
    if len(fitting) != 1:
        what = f"has the labels of {', '.join(tree.datasets) or 'no data set'}" if len(fitting) != 0 else (
            f"has no data set with the labels {', '.join(data.classes)}, only {', '.join(tree.datasets) or 'none'}"
        )  # fmt: skip
        raise ValueError(f"{KEY}.TREE {what}: say by LABEL_SET which of them, or by CLASSES, these maps have.")
    return fitting[0]


def register_folders_of(data: CustomData, files: bool) -> tuple[str, ...]:
    """Returns the classes: the names of the folders, sorted, or CLASSES, which have to be these."""
    if files:
        require({f"{KEY}.{part.upper()}": data.path(part) for part in data.parts})
    recipe = recipe_of(data.path("train"))
    for part in data.parts:
        name = data.name_of(part)
        register_folders(name, data.path(part), classes_from=data.path("train"), recipe=recipe)
        MetadataCatalog.get(name).split = TEST if part == "test" else part
        if not files:
            MetadataCatalog.get(name).thing_classes = list(data.classes)
    if not files:
        return data.classes
    train = data.name_of("train")
    classes = same_classes(data.classes, ensure_classes(train), os.fspath(data.path("train")))
    register_parts(train)
    return classes
