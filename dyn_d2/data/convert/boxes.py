"""Pascal VOC, YOLO and COCO, through the readers that training uses."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dyn_d2.data.custom.yolo import class_names, coco_of, images_in, label_file, read_yaml_of
from dyn_d2.data.validity.coco import DataError, read_json
from dyn_d2.data.validity.voc import read_xml

from .items import Found, Item, Shape


def read_voc(path: Path, classes: Sequence[str]) -> Found:
    """One xml, or all below a folder; its first pixel is 1. Objects marked difficult become crowds, which are not
    learned from and cost nothing in evaluation."""
    found, files = Found(labels=tuple(classes)), [path] if path.is_file() else sorted(path.rglob("*.xml"))
    for file in files:
        image = read_xml(file)
        shapes = []
        for thing in image.objects:
            x0, y0, x1, y1 = thing.box
            shapes.append(Shape(thing.name, (x0 - 1, y0 - 1, x1, y1), crowd=bool(thing.difficult)))
        found.items.append(Item(file.stem, image.width, image.height, tuple(shapes)))
    return found


def read_yolo(path: Path, classes: Sequence[str]) -> Found:
    """A folder with images and a txt each. Of several parts, all images."""
    root = path if path.is_dir() else path.parent
    read_yaml_of(root)  # labels that are no boxes are refused
    names = tuple(classes) or class_names(root)
    images = images_in(root)
    content = coco_of(images, [label_file(image) for image in images], names)
    return _of_coco(content, names)


def read_coco(path: Path, classes: Sequence[str]) -> Found:
    """A json in COCO's format, or the one in a folder. Left out: categories that only group others and have no object,
    as Roboflow writes them, and segmentations that are empty."""
    if path.is_dir():
        files = sorted(path.rglob("*.json"))
        if len(files) != 1:
            raise DataError(f"{path} holds {len(files)} json files: name one of them.")
        path = files[0]
    content = read_json(path)
    for section in ("images", "annotations", "categories"):
        if not isinstance(content.get(section), list):
            raise DataError(f"{path} has no list of {section}.")
    try:
        used = {a["category_id"] for a in content["annotations"]}
        above = {c.get("supercategory") for c in content["categories"]}
        kept = [c for c in content["categories"] if c["id"] in used or c["name"] not in above]
        content["categories"] = sorted(kept, key=lambda c: c["id"])
        return _of_coco(content, tuple(classes) or tuple(str(c["name"]) for c in content["categories"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise DataError(f"{path} is damaged: {what}. dyn-d2 check-data --json {path} lists all defects.") from error


def _of_coco(content: dict[str, Any], labels: tuple[str, ...]) -> Found:
    names = {c["id"]: str(c["name"]) for c in content["categories"]}
    files = {i["id"]: i["file_name"] for i in content["images"]}
    shapes = defaultdict(list)
    for a in content["annotations"]:
        try:
            shapes[a["image_id"]].append(_shape(a, names))
        except (KeyError, TypeError, ValueError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else error
            image = files.get(a.get("image_id"), a.get("image_id"))
            raise ValueError(f"{what} (annotation {a.get('id')}, image {image})") from error
    items = [Item(i["file_name"], i.get("width"), i.get("height"), tuple(shapes[i["id"]])) for i in content["images"]]
    lost = sum(len(own) for image, own in shapes.items() if image not in files)
    return Found(items, labels, Counter({"annotation of an image that is not listed": lost} if lost else {}))


def _shape(annotation: dict[str, Any], names: dict[Any, str]) -> Shape:
    """An object of a json.

    Args:
        names: of the categories, by id.
    """
    category, mask = annotation["category_id"], annotation.get("segmentation")
    if category not in names:
        raise ValueError(f"category_id {category!r} is not in categories")
    x, y, w, h = annotation["bbox"]
    polygons: tuple[tuple[tuple[float, float], ...], ...] = ()
    rle = None
    if isinstance(mask, dict):
        rle = mask
    elif mask:
        if odd := [p for p in mask if len(p) % 2]:
            raise ValueError(f"a polygon has {len(odd[0])} numbers, no pairs")
        polygons = tuple(tuple(zip(p[::2], p[1::2], strict=True)) for p in mask)
    return Shape(names[category], (x, y, x + w, y + h), polygons, rle, bool(annotation.get("iscrowd")))
