"""Boxes and masks: COCO jsons, VOC folders and YOLO folders, registered by Detectron2's own functions."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from dyn_d2.data.few_shot.sources import forget, json_categories
from dyn_d2.data.validity.coco import DataError
from dyn_d2.data.validity.voc import image_ids, image_list, read_xml

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_pascal_voc

from .keys import KEY, CustomData
from .yolo import class_names, json_of, names_classes, read_yaml_of, source_of

VOC_YEAR = 2012  # decides how precision is averaged: as since 2010, over all recalls


def require(paths: dict[str, Path]) -> None:
    """Files and folders, by the keys that name them, are there.

    Raises:
        FileNotFoundError: lists those that are not.
    """
    missing = [f"{key}={str(path)!r}" for key, path in paths.items() if not path.exists()]
    if missing:
        raise FileNotFoundError(f"Not found: {', '.join(missing)} (relative paths start at {Path.cwd()}).")


def same_classes(classes: Sequence[str], found: Sequence[str], where: str) -> tuple[str, ...]:
    """``found``, which CLASSES, where given, has to be.

    Raises:
        DataError: they differ.
    """
    if classes and list(classes) != list(found):
        raise DataError(
            f"{KEY}.CLASSES is {', '.join(classes)}, but {where} has {', '.join(found)}, in this order: leave CLASSES "
            "empty, or correct one of them."
        )
    return tuple(found)


def register_coco(data: CustomData, files: bool) -> tuple[str, ...]:
    """Returns the classes, in the order of their category ids; every json has to have the same."""
    classes = data.classes
    for part in data.parts:
        name, path, images, own = data.name_of(part), data.path(part), data.image_folder(part), classes
        if files:
            key = f"{KEY}.{part.upper()}"
            require({key: path, f"{key}_IMAGES": images})
            own = tuple(category["name"] for category in json_categories(path))
            classes = classes if data.chosen and classes else same_classes(classes, own, str(path))
        forget(name)
        register_coco_instances(name, {"thing_classes": list(own)}, str(path), str(images))
    return classes


def register_voc(data: CustomData, files: bool) -> tuple[str, ...]:
    """Returns the classes: CLASSES, or the names of all objects, sorted."""
    lists = {part: data.voc_list(part) for part in data.parts}
    classes = data.classes
    if files:
        require({f"{KEY}.ROOT": data.root})
        require({f"{KEY}.{part.upper()}": image_list(data.root, split) for part, split in lists.items()})
        found = sorted({name for split in lists.values() for name in voc_classes(data.root, split)})
        unknown = [name for name in found if name not in classes]
        if classes and unknown:
            raise DataError(f"{KEY}.CLASSES lacks {', '.join(unknown)}, which {data.root} has objects of: add them.")
        classes = classes or tuple(found)
    for part, split in lists.items():
        forget(data.name_of(part))
        register_pascal_voc(data.name_of(part), str(data.root), split, VOC_YEAR, list(classes))
        MetadataCatalog.get(data.name_of(part)).evaluator_type = "pascal_voc"
    return classes


def voc_classes(folder: Path, split: str) -> frozenset[str]:
    """Names of the objects of a list of images."""
    path = image_list(folder, split)
    return _named(str(path), path.stat().st_mtime_ns, str(folder / "Annotations"))


@lru_cache(maxsize=16)  # a config is derived several times, and the files are many
def _named(path: str, mtime: int, annotations: str) -> frozenset[str]:
    files = [Path(annotations, f"{image}.xml") for image in image_ids(path)]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{path} lists images without annotations: {', '.join(missing[:3])} not found.")
    return frozenset(found.name for file in files for found in read_xml(file, sized=False).objects)


def register_yolo(data: CustomData, files: bool) -> tuple[str, ...]:
    """Returns the classes. The boxes go into a json of COCO's format below the user's cache, made anew when a file
    changes: evaluation, check and few-shot sets read it as any other."""
    classes = data.classes
    if files:
        require({f"{KEY}.ROOT": data.root})
        read_yaml_of(data.root)  # labels that are no boxes are refused
        if names_classes(data.root):
            classes = same_classes(classes, class_names(data.root), str(data.root))
        classes = classes or class_names(data.root)  # complains
    for part in data.parts:
        name, json_file, pictures = data.name_of(part), Path("unknown.json"), data.root
        if files:
            source = source_of(data.root, part, data.given[part])
            json_file = json_of(name, source, classes)
            pictures = source if source.is_dir() else source.parent
        forget(name)
        metadata = {"thing_classes": list(classes), "picture_root": str(pictures)}
        register_coco_instances(name, metadata, str(json_file), str(data.root))
    return classes
