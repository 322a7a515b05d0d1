"""Reading the data sets that few-shot sets are made from, with what Detectron2's loaders leave out.

Every annotation gets an ``id`` that names it within its data set (the annotation id of the json, or
``<image id>:<position>`` where there is none), and VOC objects keep their ``difficult`` flag.
"""

import json
import os
import xml.etree.ElementTree as ET
from functools import lru_cache
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json
from detectron2.data.datasets.lvis import load_lvis_json
from detectron2.structures import BoxMode

ROOT_VARIABLE = "DETECTRON2_DATASETS"
# What readers of annotations stumble with over a file that is json but not proper COCO.
BROKEN_JSON = (KeyError, IndexError, TypeError, ValueError, AttributeError, AssertionError)


def source_files(name: str) -> list[Path]:
    """Files and folders that the data set ``name`` cannot do without; empty where its metadata does not say.

    Raises:
        KeyError: no such data set.
    """
    if name not in DatasetCatalog:
        raise KeyError(f"Data set {name!r} is not registered. Known: {', '.join(sorted(DatasetCatalog))}.")
    meta = MetadataCatalog.get(name)
    if meta.get("json_file"):
        return [Path(meta.json_file)]
    if meta.get("dirname"):
        folder = Path(meta.dirname)
        return [folder / "ImageSets" / "Main" / f"{meta.split}.txt", folder / "Annotations"]
    return []


def forget(name: str) -> None:
    """Remove a data set from both catalogs, if it is there, so that it can be registered with other content."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.remove(name)


def require_source(name: str) -> None:
    """Complain before anything is loaded.

    Raises:
        FileNotFoundError: files of the data set are missing; names them and the environment variable.
    """
    missing = [str(path) for path in source_files(name) if not path.exists()]
    if missing:
        root = os.environ.get(ROOT_VARIABLE, "datasets")
        command = MetadataCatalog.get(name).get("prepare_command")
        raise FileNotFoundError(
            f"Data set {name!r}: {', '.join(missing)} not found. Set {ROOT_VARIABLE} (now {root!r}) to the folder that "
            "holds the data sets; " + (f"`{command}` makes it." if command else "datasets/README.md shows the layout.")
        )


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """A json file whose top level is an object.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not json, or another top level.
    """
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: {error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid json: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not hold a json object ({{...}}).")
    return value


def broken_json(path: str | os.PathLike, error: Exception) -> ValueError:
    """The error to raise for an annotation file that could not be used because of ``error``."""
    detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return ValueError(f"{path} cannot be used ({detail}). dyn-d2 check-data --json {path} lists everything wrong.")


def json_categories(path: str | os.PathLike) -> tuple[dict[str, Any], ...]:
    """The categories of a COCO or LVIS json in the order of their ids.

    Raises:
        ValueError: the file has no usable list of categories.
    """
    return _json_categories(str(path), os.stat(path).st_mtime_ns)


@lru_cache(maxsize=16)  # the files are large and the categories few
def _json_categories(path: str, mtime: int) -> tuple[dict[str, Any], ...]:
    categories = read_json(path).get("categories")
    try:
        return tuple(sorted(categories, key=lambda category: (category["id"], category["name"])))
    except (TypeError, KeyError) as error:
        raise ValueError(f'{path}: "categories" has to be a list of objects with "id" and "name".') from error


def source_classes(name: str) -> tuple[str, ...]:
    """Class names of a registered data set in detector order, from its metadata or else from its json.

    Raises:
        KeyError, FileNotFoundError: the data set is unknown or not there.
        ValueError: neither place names the classes.
    """
    files = source_files(name)
    classes = MetadataCatalog.get(name).get("thing_classes")
    if classes:
        return tuple(classes)
    if not (files and files[0].suffix == ".json"):
        raise ValueError(f"Data set {name!r} has no thing_classes: set MetadataCatalog.get({name!r}).thing_classes.")
    require_source(name)
    return tuple(category["name"] for category in json_categories(files[0]))


def load_source(name: str) -> list[dict[str, Any]]:
    """Records of a registered data set in Detectron2's format; ``category_id`` counts in ``source_classes(name)``.

    Raises:
        KeyError, FileNotFoundError: the data set is unknown or not there.
        ValueError: an annotation file cannot be used; the message names it.
    """
    require_source(name)
    meta = MetadataCatalog.get(name)
    if meta.get("json_file"):
        lvis = meta.get("evaluator_type") == "lvis"
        load, keys = (load_lvis_json, ["id"]) if lvis else (load_coco_json, ["id", "has_mask"])
        try:
            return load(meta.json_file, meta.image_root, name, extra_annotation_keys=keys)
        except BROKEN_JSON as error:
            raise broken_json(meta.json_file, error) from error
    if meta.get("dirname"):
        return [
            read_voc_record(meta.dirname, image_id, tuple(meta.thing_classes))
            for image_id in voc_image_ids(meta.dirname, meta.split)
        ]
    records = [dict(record) for record in DatasetCatalog.get(name)]
    for record in records:
        record["annotations"] = [
            {"id": f"{record['image_id']}:{position}", **annotation}
            for position, annotation in enumerate(record.get("annotations", []))
        ]
    return records


def voc_image_ids(dirname: str, split: str) -> list[str]:
    """Image ids of a VOC image set."""
    lines = (Path(dirname) / "ImageSets" / "Main" / f"{split}.txt").read_text().splitlines()
    return [line.split()[0] for line in lines if line.strip()]


def read_voc_record(dirname: str, image_id: str, classes: tuple[str, ...]) -> dict[str, Any]:
    """One image of a VOC folder. Boxes are absolute XYXY with the 1-based first pixel moved to 0, as in Detectron2.

    Raises:
        FileNotFoundError: the xml is missing.
        ValueError: it is broken, lacks a field, or names a class that is not in ``classes``.
    """
    path = Path(dirname) / "Annotations" / f"{image_id}.xml"
    try:
        tree = ET.parse(path)
        record = {
            "file_name": str(Path(dirname) / "JPEGImages" / f"{image_id}.jpg"),
            "image_id": image_id,
            "height": int(_text(tree, "./size/height")),
            "width": int(_text(tree, "./size/width")),
        }
        annotations = []
        for position, item in enumerate(tree.findall("object")):
            name = _text(item, "name")
            if name not in classes:
                raise ValueError(f"object {position} has the unknown class {name!r}")
            x0, y0, x1, y1 = (float(_text(item, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
            annotations.append(
                {
                    "id": f"{image_id}:{position}",
                    "category_id": classes.index(name),
                    "bbox": [x0 - 1.0, y0 - 1.0, x1, y1],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "difficult": int(item.findtext("difficult", "0")),
                }
            )
    except (ET.ParseError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return {**record, "annotations": annotations}


def _text(element: ET.ElementTree | ET.Element, tag: str) -> str:
    text = element.findtext(tag)
    if text is None:
        raise ValueError(f"no <{tag.removeprefix('./')}>")
    return text.strip()
