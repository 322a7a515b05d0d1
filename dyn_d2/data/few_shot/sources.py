"""Reading the data sets that few-shot sets are made from, with what Detectron2's loaders leave out.

Every annotation gets an ``id`` that names it within its data set (the annotation id of the json, or
``<image id>:<position>`` where there is none), and VOC objects keep their ``difficult`` flag.
"""

import os
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from dyn_d2.data.annotation_files import json_records, voc_record
from dyn_d2.data.validity.coco import DataError, examine, lvis_names, read_json
from dyn_d2.data.validity.records import sound_records
from dyn_d2.data.validity.values import shown
from dyn_d2.data.validity.voc import image_ids, image_list

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.structures import BoxMode

ROOT_VARIABLE = "DETECTRON2_DATASETS"


def source_files(name: str) -> list[Path]:
    """Files and folders that the data set ``name`` cannot do without; empty where its metadata does not say.

    Raises:
        KeyError: no such data set.
    """
    if name not in DatasetCatalog:
        raise KeyError(
            f"Data set {name!r} is not registered (DATASETS.CUSTOM takes your own data by keys, DATASETS.IMPORT a "
            f"module that registers them); these are: {', '.join(sorted(DatasetCatalog))}."
        )
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


def json_categories(path: str | os.PathLike) -> tuple[dict[str, Any], ...]:
    """The categories of a COCO or LVIS json in the order of their ids.

    Raises:
        DataError: the file has no usable list of categories.
    """
    return _json_categories(str(path), os.stat(path).st_mtime_ns)


@lru_cache(maxsize=16)  # the files are large and the categories few
def _json_categories(path: str, mtime: int) -> tuple[dict[str, Any], ...]:
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": read_json(path).get("categories")}
    found = examine(content, path).require()
    return tuple({**found.categories[number], "id": number} for number in found.names)


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
    if meta.get("json_file") or meta.get("dirname"):
        # Ids of annotations and marks as "difficult", by which shots are drawn, are in the files alone.
        filed = _load_files(meta, name)
        if _has_known_reader(name) or name in _loading:
            return filed
        theirs = _from_function(name)
        if _same_objects(theirs, filed, meta):
            return filed
    else:
        theirs = DatasetCatalog.get(name)
    records = sound_records(theirs, len(meta.get("thing_classes") or ()), name)
    for record in records:
        record["annotations"] = [
            {"id": f"{record['image_id']}:{position}", **annotation}
            for position, annotation in enumerate(record.get("annotations", []))
        ]
    return records


_loading: set[str] = set()  # sets whose own functions run, and may ask for what is in their files


def _from_function(name: str) -> Any:
    _loading.add(name)
    try:
        return DatasetCatalog.get(name)
    finally:
        _loading.discard(name)


def _load_files(meta: Metadata, name: str) -> list[dict[str, Any]]:
    """What the json or the VOC folder that the metadata name holds."""
    if meta.get("json_file"):
        return _load_json(meta, name)
    classes = tuple(meta.thing_classes)
    return [voc_record(meta.dirname, image_id, classes) for image_id in voc_image_ids(meta.dirname, meta.split)]


def _same_objects(theirs: list[dict[str, Any]], filed: list[dict[str, Any]], meta: Metadata) -> bool:
    """Whether somebody's own function gives what is in the files; also where it counts classes as the json does."""
    raw = {number: own for own, number in (meta.get("thing_dataset_id_to_contiguous_id") or {}).items()}
    try:
        found = _objects(theirs)
    except (
        ArithmeticError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ):  # what is wrong there is told where they are looked at
        return False
    return found == _objects(filed) or found == _objects(filed, raw)


def _objects(records: list[dict[str, Any]], classes: Mapping[int, int] | None = None) -> dict[str, Counter]:
    """Image -> its objects: class, after ``classes``, and box in whole pixels."""
    found: dict[str, Counter] = {}
    for record in records:
        own = found.setdefault(str(record.get("image_id")), Counter())
        for annotation in record.get("annotations", ()):
            box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
            label = annotation["category_id"]
            key = ((classes or {}).get(label, label), *map(round, box))
            own[key] += 1
    return found


def _has_known_reader(name: str) -> bool:
    """Whether Detectron2 or dyn_d2 registered the set, whose files say all; somebody's own function may choose among
    the records, or change them."""
    function = DatasetCatalog[name]
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__module__", "")).split(".")[0] in ("detectron2", "dyn_d2")


def _load_json(meta: Metadata, name: str) -> list[dict[str, Any]]:
    """Records of a COCO or LVIS json; sets the classes in the metadata."""
    lvis = meta.get("evaluator_type") == "lvis"
    found = examine(read_json(meta.json_file), str(meta.json_file), lvis=lvis, masks=False).require()
    position = {number: i for i, number in enumerate(found.names)}
    if not meta.get("thing_classes"):
        meta.thing_classes = lvis_names(found) if lvis else list(found.names.values())
    elif not lvis and list(meta.thing_classes) != list(found.names.values()):
        raise DataError(
            f"{meta.json_file}: its categories are {shown(found.names.values())}, in the order of their ids, but the "
            f"thing_classes of {name} are {shown(meta.thing_classes)}: do not set them, or as in the file."
        )
    if not lvis:
        meta.thing_dataset_id_to_contiguous_id = position
    elif len(position) > len(meta.thing_classes) or list(position) != list(range(1, len(position) + 1)):
        raise DataError(
            f"{meta.json_file}: the ids of its {len(position)} categories are not 1, 2, ... of the "
            f"{len(meta.thing_classes)} classes of {name}, as LVIS counts them."
        )
    return json_records(found, meta.image_root, position, lvis=lvis, keys=("id",) if lvis else ("id", "has_mask"))


def voc_image_ids(dirname: str, split: str) -> list[str]:
    """Image ids of a VOC image set.

    Raises:
        FileNotFoundError: there is no such list.
        DataError: it lists an image twice.
    """
    return image_ids(image_list(dirname, split))
