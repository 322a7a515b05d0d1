"""COCO-format json: reading it, writing it, and registering data sets that come with it."""

import datetime
import json
import logging
import os
from typing import Any

from iopath.common.file_io import file_lock

from detectron2.utils.file_io import PathManager, atomic_open

from ..catalog import DatasetCatalog, MetadataCatalog
from ..paths import require

logger = logging.getLogger(__name__)


def read_annotation_json(json_file: str, kind: str, named: bool = True) -> Any:
    """Read a json in COCO's or LVIS' layout.

    Args:
        kind: "COCO" or "LVIS".
        named: the file has to name its categories.

    Returns:
        Its sound content, a ``dyn_d2.data.validity.coco.CocoContent``, whose masks nobody has looked at yet.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no json, not this layout, or entries that have no right reading; the message lists them.
    """
    # Only here, because dyn_d2 is imported together with this package.
    from dyn_d2.data.validity.coco import examine, read_json

    content = read_json(PathManager.get_local_path(require(json_file, f"{kind} annotation file")))
    if "images" not in content:
        raise ValueError(f"{json_file} is not in {kind} format: it has no 'images'.")
    annotations = content.get("annotations")
    if not named and "categories" not in content and isinstance(annotations, list):
        ids = {a.get("category_id") for a in annotations if isinstance(a, dict)}
        content["categories"] = [{"id": number, "name": str(number)} for number in ids]
    found = examine(content, json_file, lvis=kind == "LVIS", masks=False)
    strays = sum(problem.kind == "unknown_image" for problem in found.problems)
    found.require()
    if strays:
        logger.warning(f"{strays} of {len(annotations)} annotations in {json_file} belong to no image of the file.")
    return found


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
        category_id, iscrowd, segmentation if given). Keypoints are not read. An object whose segmentation is no mask
        keeps its box: only training on masks has to refuse it.

    Raises:
        FileNotFoundError: no such json.
        ValueError: malformed content; the message names file and entries.
    """
    from dyn_d2.data.annotation_files import json_records

    json_file = os.fspath(json_file)
    found = read_annotation_json(json_file, "COCO", named=dataset_name is not None)
    classes = None if dataset_name is None else _set_categories(dataset_name, found)
    logger.info(f"Loaded {len(found.images)} images from {json_file}")
    return json_records(found, image_root, classes, keys=extra_annotation_keys or ())


def _set_categories(dataset_name: str, found: Any) -> dict[int, int]:
    """Put the classes into the metadata; returns category id -> class index."""
    ids = list(found.names)
    if not ids:
        raise ValueError(f"{found.title} has no 'categories'.")
    if (ids[0], ids[-1]) != (1, len(ids)) and "coco" not in dataset_name:
        logger.warning(
            f"Category ids in {found.title} are not 1 to {len(ids)}; they are mapped to 0 to {len(ids) - 1}."
        )
    mapping = {category_id: index for index, category_id in enumerate(ids)}
    names = list(found.names.values())
    MetadataCatalog.get(dataset_name).set(thing_classes=names, thing_dataset_id_to_contiguous_id=mapping)
    return mapping


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
        ValueError: a record is unusable; lists what is wrong. Masks are not looked at.
    """
    # Only here, because dyn_d2 is imported together with this package.
    from dyn_d2.data.validity.records import as_coco

    metadata = MetadataCatalog.get(dataset_name)
    original = {v: k for k, v in metadata.get("thing_dataset_id_to_contiguous_id", {}).items()}
    classes = list(metadata.thing_classes)
    records = [{"image_id": index, **record} for index, record in enumerate(DatasetCatalog.get(dataset_name))]
    content = as_coco(records, classes, dataset_name, [original.get(i, i) for i in range(len(classes))])
    annotations = content.pop("annotations", [])
    logger.info(f"Converted '{dataset_name}' to COCO format: {len(records)} images, {len(annotations)} annotations")
    date = str(datetime.datetime.now())
    content["info"] = {"date_created": date, "description": f"COCO json made from '{dataset_name}'."}
    return content | {"licenses": None} | ({"annotations": annotations} if annotations else {})


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
