"""Records in Detectron2's format of the annotation files of COCO, LVIS and VOC, as ``validity`` reads them."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from .validity.coco import LVIS_LISTS, CocoContent, DataError, annotations_by_image, image_file, is_masked
from .validity.coco import uniform_segmentation as uniform
from .validity.values import shown
from .validity.voc import read_xml

Record = dict[str, Any]

_OTHER_IMAGES = (".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".bmp", ".tif", ".tiff", ".webp")


def json_records(
    found: CocoContent,
    image_root: str | os.PathLike,
    numbers: Mapping[int, int] | None = None,
    *,
    lvis: bool = False,
    keys: Collection[str] = (),
) -> list[Record]:
    """Records of a COCO or LVIS json by image id: file_name, height, width, image_id, in LVIS its lists of categories,
    and annotations (bbox, bbox_mode, category_id, in COCO iscrowd, segmentation where there is one).

    Unlike Detectron2's, an object whose segmentation is no mask keeps its box: only who wants the mask has to refuse.

    Args:
        found: its sound content.
        image_root: the folder that file names are relative to.
        numbers: category id -> class; None keeps the ids.
        keys: further ones to copy from each annotation.
    """
    annotations = annotations_by_image(found.annotations)
    kept = ("bbox", *keys) if lvis else ("iscrowd", "bbox", *keys)

    def convert(source: dict[str, Any]) -> dict[str, Any]:
        result = {key: source[key] for key in kept if key in source}
        if is_masked(source):
            result["segmentation"] = uniform(source["segmentation"])
        category = source["category_id"]
        result["category_id"] = category if numbers is None else numbers[category]
        return result | {"bbox_mode": BoxMode.XYWH_ABS}

    records = []
    for number in sorted(found.images):
        image = found.images[number]
        record: Record = {"file_name": os.path.join(image_root, image_file(image, lvis))}
        record |= {"height": image["height"], "width": image["width"], "image_id": number}
        record |= {key: image[key] for key in LVIS_LISTS if lvis}
        records.append(record | {"annotations": [convert(source) for source in annotations.get(number, ())]})
    return records


def voc_record(dirname: str, image_id: str, classes: tuple[str, ...]) -> Record:
    """One image of a VOC folder. Boxes are absolute XYXY with the 1-based first pixel moved to 0, as in Detectron2;
    each annotation has an "id" and keeps its "difficult" flag.

    Raises:
        FileNotFoundError: the xml is missing.
        DataError: it is broken, lacks a field, or names a class that is not in ``classes``.
    """
    path = Path(dirname) / "Annotations" / f"{image_id}.xml"
    image = read_xml(path)
    annotations = []
    for position, found in enumerate(image.objects):
        if found.name not in classes:
            raise DataError(f"{path}: object {position} has the unknown class {found.name!r}, none of {shown(classes)}")
        x0, y0, x1, y1 = found.box
        annotations.append(
            {
                "id": f"{image_id}:{position}",
                "category_id": classes.index(found.name),
                "bbox": [x0 - 1.0, y0 - 1.0, x1, y1],
                "bbox_mode": BoxMode.XYXY_ABS,
                "difficult": found.difficult,
            }
        )
    return {
        "file_name": str(_voc_image(Path(dirname) / "JPEGImages", image_id)),
        "image_id": image_id,
        "height": image.height,
        "width": image.width,
        "annotations": annotations,
    }


def _voc_image(folder: Path, image_id: str) -> Path:
    """The jpg of VOC, or, where people's folders have another ending, the image of that name."""
    usual = folder / f"{image_id}.jpg"
    if usual.is_file():
        return usual
    others = (folder / f"{image_id}{suffix}" for suffix in _OTHER_IMAGES)
    return next((path for path in others if path.is_file()), usual)
