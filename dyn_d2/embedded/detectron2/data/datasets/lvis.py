"""LVIS v0.5 and v1. The class names come out of the json files, so they are known where one of these is on disk."""

import logging
import os
import re
from typing import Any

from detectron2.utils.file_io import PathManager

from ..catalog import DatasetCatalog, Metadata, MetadataCatalog
from ..paths import datasets_root
from .coco import read_annotation_json

logger = logging.getLogger(__name__)


class _LvisMetadata(Metadata):
    """Metadata that read the classes from the json of the data set, or a sibling of it, when first asked for."""

    def __getattr__(self, key: str) -> Any:
        if key != "thing_classes" or "json_file" not in self.__dict__:
            return super().__getattr__(key)
        try:
            self.thing_classes = _classes_beside(self.json_file)
        except (FileNotFoundError, ValueError) as error:
            raise AttributeError(f"'{key}' of '{self.name}' is read from its json file. {error}") from error
        return self.thing_classes


def _classes_beside(json_file: str) -> list[str]:
    """The classes of the LVIS version of ``json_file``, from the smallest official file in its folder."""
    folder, name = os.path.split(json_file)
    version = re.match(r"lvis_v(0\.5|1)_", name)
    beside = [os.path.join(folder, f"{version[0]}{split}.json") for split in ("val", "train")] if version else []
    source = next((path for path in beside if PathManager.exists(path)), json_file)
    logger.info(f"Reading thing_classes from {source}")
    return _classes(read_annotation_json(source, "LVIS"))


def _classes(found: Any) -> list[str]:
    """The names (first synonym) in the order of the ids."""
    if list(found.names) != list(range(1, len(found.names) + 1)):
        raise ValueError(f"Category ids of {found.title} are not 1 to {len(found.names)}, as LVIS counts them.")
    # Only here, because dyn_d2 is imported together with this package.
    from dyn_d2.data.validity.coco import lvis_names

    return lvis_names(found)


def get_lvis_instances_meta(dataset_name: str) -> dict[str, Any]:
    """Metadata of an LVIS data set, "lvis_v0.5..." or "lvis_v1...".

    Raises:
        ValueError: another name.
        FileNotFoundError: no json of this version in $DETECTRON2_DATASETS/lvis.
    """
    version = next((v for v in ("v0.5", "v1") if v in dataset_name), None)
    if version is None:
        raise ValueError(f"No built-in metadata for dataset {dataset_name}: its name says neither v0.5 nor v1.")
    val = os.path.join(datasets_root(), "lvis", f"lvis_{version}_val.json")
    return {"thing_classes": _classes_beside(val)}


def load_lvis_json(
    json_file: str, image_root: str, dataset_name: str | None = None, extra_annotation_keys: list[str] | None = None
) -> list[dict]:
    """Read LVIS instance annotations.

    Args:
        json_file: path.
        image_root: folder of train2017/, val2017/ ..., ending in "/"; the folder and file of an image are the last two
            parts of its coco_url.
        dataset_name: whose metadata gets ``thing_classes``, unless it has them.
        extra_annotation_keys: further keys to copy from each annotation.

    Returns:
        Records as of load_coco_json, plus not_exhaustive_category_ids and neg_category_ids (ids of the json). Class
        index is category id - 1.

    Raises:
        FileNotFoundError: no such json.
        ValueError: malformed content; the message names file and entries.
    """
    from dyn_d2.data.annotation_files import json_records

    json_file = os.fspath(json_file)
    found = read_annotation_json(json_file, "LVIS")
    contiguous = {number: number - 1 for number in found.names}
    if dataset_name is not None:
        metadata = MetadataCatalog.get(dataset_name)
        if "thing_classes" not in metadata.as_dict():
            metadata.thing_classes = _classes(found)
        if found.names and not 1 <= min(found.names) <= max(found.names) <= len(metadata.thing_classes):
            raise ValueError(
                f"Category ids of {json_file} are {min(found.names)} to {max(found.names)}, but {dataset_name} has "
                f"{len(metadata.thing_classes)} thing_classes, which LVIS counts from 1."
            )
    logger.info(f"Loaded {len(found.images)} images from {json_file}")
    return json_records(found, image_root, contiguous, lvis=True, keys=extra_annotation_keys or ())


def register_lvis_instances(name: str, metadata: dict, json_file: str, image_root: str) -> None:
    """Register a data set with an LVIS-format json, see :func:`load_lvis_json`.

    ``thing_classes`` need not be in ``metadata``: they are read from the json when first used.
    """
    DatasetCatalog.register(name, lambda: load_lvis_json(json_file, image_root, name))
    if name not in MetadataCatalog:
        MetadataCatalog[name] = _LvisMetadata(name=name)
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="lvis", **metadata)
