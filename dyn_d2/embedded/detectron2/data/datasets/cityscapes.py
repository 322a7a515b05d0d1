"""Cityscapes, fine annotations: instances from polygons, and semantic label maps."""

import logging
import multiprocessing
import os
from typing import Any

import numpy as np

from detectron2.left_out import left_out
from detectron2.structures import BoxMode
from detectron2.utils.comm import get_world_size
from detectron2.utils.file_io import PathManager

from ..paths import require

logger = logging.getLogger(__name__)

_IMAGE_SUFFIX = "leftImg8bit.png"


def _get_cityscapes_files(image_dir: str, gt_dir: str) -> list[tuple[str, str]]:
    """(image, annotation prefix) of each image; the prefix ends before "instanceIds.png" and the like."""
    files = []
    for city in PathManager.ls(require(image_dir, "Cityscapes image folder")):
        for name in PathManager.ls(os.path.join(image_dir, city)):
            if not name.endswith(_IMAGE_SUFFIX):
                raise ValueError(f"{image_dir}{city}/{name} is not named like a Cityscapes image, *_{_IMAGE_SUFFIX}.")
            prefix = os.path.join(gt_dir, city, name.removesuffix(_IMAGE_SUFFIX) + "gtFine_")
            files.append((os.path.join(image_dir, city, name), prefix))
    if not files:
        raise FileNotFoundError(f"No images found in {image_dir}!")
    require(files[0][1] + "polygons.json", "Cityscapes annotation file")
    return files


def _read_json(path: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Content of an annotation file, and the height and width of its image.

    Raises:
        ValueError: no json, or without a size; the message names the file.
    """
    # Only here, because dyn_d2 is imported together with this package.
    from dyn_d2.data.validity.coco import read_json
    from dyn_d2.data.validity.values import brief, size

    content = read_json(PathManager.get_local_path(path))
    sides = {side: size(content.get(key)) for side, key in (("height", "imgHeight"), ("width", "imgWidth"))}
    if None in sides.values():
        given = tuple(content.get(key) for key in ("imgHeight", "imgWidth"))
        raise ValueError(f'{path} needs positive integers as "imgHeight" and "imgWidth", has {brief(given)}.')
    return content, {side: number for side, number in sides.items() if number is not None}


def load_cityscapes_instances(
    image_dir: str, gt_dir: str, from_json: bool = True, to_polygons: bool = True
) -> list[dict]:
    """Read the instance annotations.

    Args:
        image_dir: e.g. ".../leftImg8bit/train".
        gt_dir: e.g. ".../gtFine/train".
        from_json, to_polygons: have to be True; reading the instance id maps is left out. Polygons need shapely.

    Returns:
        Records with annotations of the eight thing classes, in order of their ids; groups are crowds.
    """
    from cityscapesscripts.helpers.labels import labels

    if not (from_json and to_polygons):
        raise left_out("from_json=False, to_polygons=False", "Cityscapes' instance id maps")
    files = _get_cityscapes_files(image_dir, gt_dir)
    if len(files) < 100:
        records = [_read_instances(f) for f in files]
    else:
        # The geometry of one image takes tenths of a second.
        with multiprocessing.Pool(max(multiprocessing.cpu_count() // get_world_size() // 2, 4)) as pool:
            records = pool.map(_read_instances, files)
    logger.info(f"Loaded {len(records)} images from {image_dir}")
    things = [label.id for label in labels if label.hasInstances and not label.ignoreInEval]
    for record in records:
        for annotation in record["annotations"]:
            annotation["category_id"] = things.index(annotation["category_id"])
    return records


def _read_instances(file: tuple[str, str]) -> dict[str, Any]:
    image_file, prefix = file
    path = prefix + "polygons.json"
    content, sides = _read_json(path)
    try:
        annotations = _from_polygons(content["objects"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # whatever the fields hold
        raise ValueError(
            f'{path} is no Cityscapes annotation: its "objects" need a known "label" and a "polygon" of three points '
            f"([x, y]) or more each ({type(error).__name__}: {error})."
        ) from error
    return {"file_name": image_file, **sides, "image_id": os.path.basename(image_file), "annotations": annotations}


def _from_polygons(objects: list[dict]) -> list[dict]:
    """Instances from the annotators' polygons, which lie in layers: a later object covers the earlier ones."""
    from cityscapesscripts.helpers.labels import name2label
    from shapely.geometry import Polygon

    covered = Polygon()
    annotations = []
    for obj in reversed(objects):
        name = obj["label"]
        label = name2label.get(name) or name2label[name.removesuffix("group")]
        if "deleted" in obj or label.id < 0:
            continue
        # Vertices are pixel indices, 0.5 goes to their centres; the official rasteriser fills every pixel that the
        # outline touches, hence the margin of half a pixel.
        shape = Polygon(np.asarray(obj["polygon"], dtype=np.float32) + 0.5).buffer(0.5, quad_segs=4)
        visible = shape.difference(covered)
        if label.hasInstances and not label.ignoreInEval:
            if visible.is_empty:
                continue
            parts = getattr(visible, "geoms", [visible])
            annotations.append(
                {
                    "iscrowd": name.endswith("group"),
                    "category_id": label.id,
                    # Outer borders only: polygons of this format have no holes.
                    "segmentation": [np.asarray(part.exterior.coords).ravel().tolist() for part in parts],
                    "bbox": visible.bounds,
                    "bbox_mode": BoxMode.XYXY_ABS,
                }
            )
        covered = covered.union(shape)
    return annotations


def load_cityscapes_semantic(image_dir: str, gt_dir: str) -> list[dict]:
    """Pair the images with their label maps of training ids (0 to 18, 255 ignored).

    Raises:
        FileNotFoundError: the maps have not been made; cityscapesscripts makes them.
    """
    gt_dir = PathManager.get_local_path(gt_dir)
    records = []
    for image_file, prefix in _get_cityscapes_files(image_dir, gt_dir):
        files = {"file_name": image_file, "sem_seg_file_name": prefix + "labelTrainIds.png"}
        records.append({**files, **_read_json(prefix + "polygons.json")[1]})
    if not PathManager.isfile(records[0]["sem_seg_file_name"]):
        raise FileNotFoundError(
            f"{records[0]['sem_seg_file_name']} is missing: make the maps of training ids with "
            "cityscapesscripts/preparation/createTrainIdLabelImgs.py"
        )
    return records
