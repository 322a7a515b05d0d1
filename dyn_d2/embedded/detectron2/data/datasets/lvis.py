"""LVIS v0.5 and v1. The class names come out of the json files, so they are known where one of these is on disk."""

import logging
import os
import re
from typing import Any

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ..catalog import DatasetCatalog, Metadata, MetadataCatalog
from ..paths import datasets_root
from .builtin_meta import _get_coco_instances_meta
from .coco import read_annotation_json

__all__ = ["get_lvis_instances_meta", "load_lvis_json", "register_lvis_instances"]

logger = logging.getLogger(__name__)

_FROM_JSON = ("thing_classes", "class_image_count")


class _LvisMetadata(Metadata):
    """Metadata that read the classes from the json of the data set, or a sibling of it, when first asked for."""

    def __getattr__(self, key: str) -> Any:
        if key in _FROM_JSON and "json_file" in self.__dict__:
            try:
                found = _classes_beside(self.json_file, key)
            except (FileNotFoundError, ValueError) as error:
                raise AttributeError(f"'{key}' of '{self.name}' is read from its json file. {error}") from error
            self.set(**{key: found})
            return found
        return super().__getattr__(key)


def _classes_beside(json_file: str, key: str) -> list:
    """``key`` for the LVIS version of ``json_file``, from the smallest official file in its folder that states it."""
    folder, name = os.path.split(json_file)
    version = re.match(r"lvis_v(0\.5|1)_", name)
    # All files of a version list the same classes; the counts are those of the training set.
    splits = ("val", "train") if key == "thing_classes" else ("train",)
    beside = [os.path.join(folder, f"{version[0]}{split}.json") for split in splits] if version else []
    source = next((path for path in beside if PathManager.exists(path)), json_file)
    logger.info(f"Reading {key} from {source}")
    return _classes(read_annotation_json(source, "LVIS")[0].get("categories", []), source)[key]


def _classes(categories: list[dict], json_file: str) -> dict[str, list]:
    """The names (first synonym) in the order of the ids, and how many images of the training set show each class."""
    categories = sorted(categories, key=lambda category: category["id"])
    if [category["id"] for category in categories] != list(range(1, len(categories) + 1)):
        raise ValueError(f"Category ids of {json_file} are not 1 to {len(categories)}, as LVIS counts them.")
    return {
        "thing_classes": [c["synonyms"][0] if c.get("synonyms") else c["name"] for c in categories],
        "class_image_count": [{"id": c["id"], "image_count": c.get("image_count", 0)} for c in categories],
    }


def get_lvis_instances_meta(dataset_name: str) -> dict[str, Any]:
    """Metadata of an LVIS data set, "lvis_v0.5...", "lvis_v1..." or "..._cocofied" (COCO's 80 classes).

    Raises:
        ValueError: another name.
        FileNotFoundError: no json of this version in $DETECTRON2_DATASETS/lvis.
    """
    if "cocofied" in dataset_name:
        return _get_coco_instances_meta()
    version = next((v for v in ("v0.5", "v1") if v in dataset_name), None)
    if version is None:
        raise ValueError(f"No built-in metadata for dataset {dataset_name}: its name says neither v0.5 nor v1.")
    val = os.path.join(datasets_root(), "lvis", f"lvis_{version}_val.json")
    return {"thing_classes": _classes_beside(val, "thing_classes")}


def load_lvis_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: list[str] | None = None,
) -> list[dict]:
    """Read LVIS instance annotations.

    Args:
        json_file: path.
        image_root: folder of train2017/, val2017/ ..., ending in "/"; the folder and file of an image are the last two
            parts of its coco_url.
        dataset_name: whose metadata gets ``thing_classes``, unless it has them; COCO's for names with "cocofied".
        extra_annotation_keys: further keys to copy from each annotation.

    Returns:
        Records as of load_coco_json, plus not_exhaustive_category_ids and neg_category_ids (ids of the json). Class
        index is category id - 1.

    Raises:
        FileNotFoundError: no such json.
        ValueError, KeyError: malformed content; the message names file and annotation.
    """
    json_file = os.fspath(json_file)
    content, images, annotations_of = read_annotation_json(json_file, "LVIS")
    contiguous = {category["id"]: category["id"] - 1 for category in content.get("categories", [])}
    if dataset_name is not None:
        metadata = MetadataCatalog.get(dataset_name)
        if "cocofied" in dataset_name:
            contiguous = metadata.set(**_get_coco_instances_meta()).thing_dataset_id_to_contiguous_id
        elif "thing_classes" not in metadata.as_dict():
            metadata.thing_classes = _classes(content.get("categories", []), json_file)["thing_classes"]
    records = []
    for image in images:
        split, file_name = image["coco_url"].split("/")[-2:]
        record = {
            "file_name": os.path.join(image_root + split, file_name),
            "height": image["height"],
            "width": image["width"],
            "not_exhaustive_category_ids": image.get("not_exhaustive_category_ids", []),
            "neg_category_ids": image.get("neg_category_ids", []),
            "image_id": image["id"],
            "annotations": [],
        }
        for source in annotations_of.get(image["id"], []):
            where = f"Annotation {source['id']} of image {image['id']} in {json_file}"
            polygons = source["segmentation"]
            if not polygons or any(len(p) % 2 or len(p) < 6 for p in polygons):
                raise ValueError(f"{where} has a polygon with less than 3 points, or none.")
            if source["category_id"] not in contiguous:
                raise KeyError(f"{where} has category_id={source['category_id']}, which is not among the categories.")
            annotation = {
                "bbox": source["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": contiguous[source["category_id"]],
                "segmentation": polygons,
            }
            record["annotations"].append(annotation | {key: source[key] for key in extra_annotation_keys or []})
        records.append(record)
    logger.info(f"Loaded {len(records)} images in the LVIS format from {json_file}")
    return records


def register_lvis_instances(name: str, metadata: dict, json_file: str, image_root: str) -> None:
    """Register a data set with an LVIS-format json, see :func:`load_lvis_json`.

    ``thing_classes`` need not be in ``metadata``: they are read from the json when first used.
    """
    DatasetCatalog.register(name, lambda: load_lvis_json(json_file, image_root, name))
    if name not in MetadataCatalog:
        MetadataCatalog[name] = _LvisMetadata(name=name)
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="lvis", **metadata)
