"""COCO-format json: reading it, writing it, and registering data sets that come with it."""

import datetime
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from iopath.common.file_io import file_lock

from detectron2.structures import Boxes, BoxMode, PolygonMasks
from detectron2.utils.file_io import PathManager, atomic_open

from ..catalog import DatasetCatalog, MetadataCatalog
from ..paths import require

logger = logging.getLogger(__name__)


def read_annotation_json(json_file: str, kind: str) -> tuple[dict, list[dict], dict[int, list[dict]]]:
    """Read a json in COCO's or LVIS' layout.

    Returns:
        The whole content, its images in the order of their ids, and the annotations of each image id in file order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no json, not this layout, or annotation ids that occur twice.
    """
    local = PathManager.get_local_path(require(json_file, f"{kind} annotation file"))
    with open(local, encoding="utf-8") as file:
        try:
            content = json.load(file)
        except ValueError as error:
            raise ValueError(f"{json_file} is not a readable json file: {error}") from error
    if not isinstance(content, dict) or "images" not in content:
        raise ValueError(f"{json_file} is not in {kind} format: it has no 'images'.")
    images = {image["id"]: image for image in content["images"]}
    of_image: dict[int, list[dict]] = defaultdict(list)
    annotations = content.get("annotations", [])
    for annotation in annotations:
        of_image[annotation["image_id"]].append(annotation)
    # The published minival files of COCO 2014 repeat some ids, which does no harm.
    if "minival" not in json_file and len({a["id"] for a in annotations}) != len(annotations):
        raise ValueError(f"Annotation ids in '{json_file}' are not unique!")
    stray = sum(len(found) for image_id, found in of_image.items() if image_id not in images)
    if stray:
        logger.warning(f"{stray} of {len(annotations)} annotations in {json_file} belong to no image of the file.")
    return content, [images[i] for i in sorted(images)], of_image


def load_coco_json(
    json_file: str, image_root: str, dataset_name: str | None = None, extra_annotation_keys: list[str] | None = None
) -> list[dict]:
    """Read COCO instance annotations.

    Args:
        json_file: path.
        image_root: folder that the file names in the json are relative to.
        dataset_name: whose metadata gets ``thing_classes`` and ``thing_dataset_id_to_contiguous_id``. Without a name,
            categories keep the ids of the json; with one, they count from 0 in the order of these ids.
        extra_annotation_keys: further keys to copy from each annotation.

    Returns:
        One record per image, by image id: file_name, height, width, image_id, annotations (bbox, bbox_mode,
        category_id, iscrowd if given, segmentation if given and valid). Keypoints are not read.

    Raises:
        FileNotFoundError: no such json.
        ValueError, KeyError: malformed content; the message names file and annotation.
    """
    json_file = os.fspath(json_file)
    content, images, annotations_of = read_annotation_json(json_file, "COCO")
    contiguous = None if dataset_name is None else _set_categories(dataset_name, content, json_file)
    keys = ["iscrowd", "bbox", "category_id", *(extra_annotation_keys or [])]
    without_mask = 0

    def convert(source: dict, where: str) -> dict | None:
        nonlocal without_mask
        annotation = {key: source[key] for key in keys if key in source}
        if source.get("ignore", 0):
            raise ValueError(f"{where} has 'ignore', which is not supported: use 'iscrowd' or remove it.")
        if len(annotation.get("bbox", [0])) == 0:
            raise ValueError(f"{where} has an empty 'bbox'. This json does not have valid COCO format.")
        if source.get("segmentation"):
            annotation["segmentation"] = _valid_segmentation(source["segmentation"])
            if not annotation["segmentation"]:
                without_mask += 1
                return None
        return annotation

    files = {image["id"]: os.path.join(image_root, image["file_name"]) for image in images}
    records = build_records(images, annotations_of, files, json_file, contiguous, convert)
    if without_mask:
        logger.warning(f"Left out {without_mask} instances of {json_file} whose polygons have less than 3 points.")
    return records


def build_records(
    images: list[dict],
    annotations_of: dict[int, list[dict]],
    files: dict[int, str],
    json_file: str,
    contiguous: dict[int, int] | None,
    convert: Callable[[dict, str], dict | None],
) -> list[dict]:
    """The records of what :func:`read_annotation_json` returned.

    Args:
        files: image id -> path.
        contiguous: category id -> class index; None keeps the ids.
        convert: called with an annotation and where it stands, returns the new one, or None to leave it out.

    Raises:
        KeyError: an annotation of an unknown category.
    """
    records = []
    for image in images:
        size = {"height": image["height"], "width": image["width"]}
        record = {"file_name": files[image["id"]], **size, "image_id": image["id"], "annotations": []}
        for source in annotations_of.get(image["id"], []):
            where = f"Annotation {source.get('id')} of image {image['id']} in {json_file}"
            annotation = convert(source, where)
            if annotation is None:
                continue
            category = annotation["category_id"]
            if contiguous is not None and category not in contiguous:
                raise KeyError(f"{where} has category_id={category}, which is not among the 'categories' of the file.")
            annotation["category_id"] = category if contiguous is None else contiguous[category]
            record["annotations"].append(annotation | {"bbox_mode": BoxMode.XYWH_ABS})
        records.append(record)
    logger.info(f"Loaded {len(records)} images from {json_file}")
    return records


def _set_categories(dataset_name: str, content: dict, json_file: str) -> dict[int, int]:
    """Put the classes into the metadata; returns category id -> class index."""
    categories = sorted(content.get("categories", []), key=lambda category: category["id"])
    ids = [category["id"] for category in categories]
    if not ids or len(set(ids)) != len(ids):
        raise ValueError(f"{json_file} has no 'categories', or two with the same id: {ids}.")
    if (ids[0], ids[-1]) != (1, len(ids)) and "coco" not in dataset_name:
        logger.warning(f"Category ids in {json_file} are not 1 to {len(ids)}; they are mapped to 0 to {len(ids) - 1}.")
    mapping = {category_id: index for index, category_id in enumerate(ids)}
    names = [category["name"] for category in categories]
    MetadataCatalog.get(dataset_name).set(thing_classes=names, thing_dataset_id_to_contiguous_id=mapping)
    return mapping


def _valid_segmentation(segmentation: Any) -> Any:
    """RLE, compressed if it was not, or the polygons that have at least three points."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return mask_util.frPyObjects(segmentation, *segmentation["size"])
        return segmentation
    return [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= 6]


def load_sem_seg(gt_root: str, image_root: str, gt_ext: str = "png", image_ext: str = "jpg") -> list[dict]:
    """Pair the images of one folder with the label maps of another, by file name without extension.

    Returns:
        Records with "file_name" and "sem_seg_file_name", sorted by name. Files without a partner are left out, with a
        warning.

    Raises:
        FileNotFoundError: a folder is missing, or no file has a partner.
    """

    def files(folder: str, what: str, extension: str) -> dict[str, str]:
        names = PathManager.ls(require(folder, what))
        return {n[: -len(extension)]: os.path.join(folder, n) for n in names if n.endswith(extension)}

    images = files(image_root, "Image folder", image_ext)
    maps = files(gt_root, "Folder of label maps", gt_ext)
    common = sorted(images.keys() & maps.keys(), key=lambda name: name.rstrip("."))
    if not common:
        raise FileNotFoundError(f"No *.{gt_ext} in {gt_root} fits an image *.{image_ext} in {image_root}.")
    if not len(images) == len(maps) == len(common):
        logger.warning(
            f"{image_root} has {len(images)} images, {gt_root} has {len(maps)} label maps; the {len(common)} that both "
            "have are used."
        )
    logger.info(f"Loaded {len(common)} images with semantic segmentation from {image_root}")
    return [{"file_name": images[name], "sem_seg_file_name": maps[name]} for name in common]


def convert_to_coco_dict(dataset_name: str) -> dict[str, Any]:
    """A registered data set as the content of a COCO json, for COCO's evaluation.

    Categories get back the ids they had where the metadata know them. "annotations" is absent if there are none.

    Raises:
        TypeError: a segmentation is neither polygons nor RLE.
    """
    metadata = MetadataCatalog.get(dataset_name)
    original = {v: k for k, v in metadata.get("thing_dataset_id_to_contiguous_id", {}).items()}
    images, annotations = [], []
    for index, record in enumerate(DatasetCatalog.get(dataset_name)):
        image_id = record.get("image_id", index)
        size = {"width": int(record["width"]), "height": int(record["height"])}
        images.append({"id": image_id, "file_name": str(record["file_name"]), **size})
        for source in record.get("annotations", []):
            category = source["category_id"]
            common = {
                "id": len(annotations) + 1,  # 0 would mean "not matched" to pycocotools
                "image_id": image_id,
                "category_id": int(original[category] if original else category),
                "iscrowd": int(source.get("iscrowd", 0)),
            }
            annotations.append(common | _coco_geometry(source))
    logger.info(f"Converted '{dataset_name}' to COCO format: {len(images)} images, {len(annotations)} annotations")
    content = {
        "info": {"date_created": str(datetime.datetime.now()), "description": f"COCO json made from '{dataset_name}'."},
        "images": images,
        "categories": [{"id": original.get(i, i), "name": name} for i, name in enumerate(metadata.thing_classes)],
        "licenses": None,
    }
    return content | ({"annotations": annotations} if annotations else {})


def _coco_geometry(source: dict) -> dict[str, Any]:
    """Box as x y w h, area (of the mask, else of the box) and segmentation of one annotation."""
    bbox = source["bbox"].tolist() if isinstance(source["bbox"], np.ndarray) else source["bbox"]
    if len(bbox) != 4:
        raise ValueError(f"A box has four numbers, but an annotation has {bbox}; rotated boxes are not supported.")
    bbox = [float(x) for x in BoxMode.convert(bbox, source["bbox_mode"], BoxMode.XYWH_ABS)]
    geometry: dict[str, Any] = {"bbox": [round(x, 3) for x in bbox]}
    segmentation = source.get("segmentation")
    if segmentation is None:
        area = Boxes([BoxMode.convert(bbox, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)]).area()[0].item()
    elif isinstance(segmentation, list):
        area = PolygonMasks([segmentation]).area()[0].item()
        geometry["segmentation"] = [np.asarray(polygon).tolist() for polygon in segmentation]
    elif isinstance(segmentation, dict):
        area = mask_util.area(segmentation).item()
        counts = segmentation["counts"]
        geometry["segmentation"] = segmentation | {"counts": counts if isinstance(counts, str) else counts.decode()}
    else:
        raise TypeError(f"A segmentation is a list of polygons or an RLE dict, not {type(segmentation)}.")
    return geometry | {"area": float(area)}


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Write :func:`convert_to_coco_dict` to a file, unless it exists and ``allow_cached``.

    Processes that share the folder wait for each other; the file is either whole or absent.
    """
    PathManager.mkdirs(os.path.dirname(output_file))
    with file_lock(output_file):
        if allow_cached and PathManager.exists(output_file):
            logger.warning(f"Using '{output_file}' of an earlier run; delete it if '{dataset_name}' has changed.")
            return
        content = convert_to_coco_dict(dataset_name)
        with atomic_open(output_file, "w") as file:
            json.dump(content, file)


def register_coco_instances(name: str, metadata: dict, json_file: str, image_root: str) -> None:
    """Register a data set with a COCO-format json. Nothing is read before the data set is asked for.

    Args:
        name: for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        metadata: further attributes for its Metadata, may be empty.
        json_file, image_root: see :func:`load_coco_json`.
    """
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)
