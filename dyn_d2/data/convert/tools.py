"""LabelMe, CVAT and Label Studio."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pycocotools.mask as mask_util

from dyn_d2.data.validity.coco import DataError

from .items import Found, Item, Point, Shape, circle, rotated

_DAMAGE = (KeyError, TypeError, ValueError, IndexError, AttributeError)


def read_labelme(path: Path, classes: Sequence[str]) -> Found:
    """One json, or all below a folder that have "shapes". Rectangles, polygons and circles are read; those that share a
    group_id are parts of one object."""
    from .formats import load_json

    found, files = Found(labels=tuple(classes)), [path] if path.is_file() else sorted(path.rglob("*.json"))
    for file in files:
        content = load_json(file)
        if not isinstance(content, dict) or "shapes" not in content:
            continue
        try:
            groups: dict[Any, list[Shape]] = {}
            for number, entry in enumerate(content["shapes"]):
                shape = _labelme_shape(entry)
                if shape is None:
                    found.left_out[str(entry.get("shape_type"))] += 1
                    continue
                group = entry.get("group_id")
                groups.setdefault((group, shape.label) if group is not None else number, []).append(shape)
            shapes = tuple(_joined(parts) for parts in groups.values())
            name, size = content.get("imagePath") or file.stem, (content.get("imageWidth"), content.get("imageHeight"))
        except _DAMAGE as error:
            raise DataError(f"{file} is damaged: {type(error).__name__}: {error}") from error
        found.items.append(Item(str(name), *size, shapes))
    return found


def _labelme_shape(entry: dict[str, Any]) -> Shape | None:
    points: list[Point] = [(float(x), float(y)) for x, y in entry["points"]]
    kind, label = entry.get("shape_type") or "polygon", str(entry["label"])
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points[0], points[-1 if len(points) == 2 else 2]
        return Shape(label, (x0, y0, x1, y1))
    if kind == "polygon" and len(points) > 2:
        return Shape(label, polygons=(tuple(points),))
    return Shape(label, polygons=(circle(points[0], points[1]),)) if kind == "circle" else None


def _joined(parts: list[Shape]) -> Shape:
    if len(parts) == 1:
        return parts[0]
    boxes = [((x0, y0), (x1, y0), (x1, y1), (x0, y1)) for x0, y0, x1, y1 in (p.box for p in parts if p.box)]
    return Shape(parts[0].label, polygons=tuple(boxes) + tuple(polygon for p in parts for polygon in p.polygons))


def read_cvat(path: Path, classes: Sequence[str]) -> Found:
    """annotations.xml of "CVAT for images 1.1", or the folder with it: boxes, also turned ones, polygons and masks."""
    if path.is_dir():
        files = [p for p in sorted(path.rglob("*.xml")) if ET.parse(p).getroot().tag == "annotations"]
        if len(files) != 1:
            raise DataError(f"{path} holds {len(files)} files of CVAT (annotations.xml): name one of them.")
        path = files[0]
    try:
        root = ET.parse(path).getroot()
        labels = [node.text or "" for node in root.findall(".//labels/label/name")]
        found = Found(labels=tuple(classes) or tuple(dict.fromkeys(labels)))
        for image in root.findall("image"):
            shapes = []
            for node in image:
                shape = _cvat_shape(node, int(image.attrib["height"]), int(image.attrib["width"]))
                if shape is None:
                    found.left_out[node.tag] += node.tag != "tag"
                else:
                    shapes.append(shape)
            size = int(image.attrib["width"]), int(image.attrib["height"])
            found.items.append(Item(image.attrib["name"], *size, tuple(shapes)))
        if not found.items and root.find("track") is not None:
            raise DataError(f"{path} is a video of CVAT: export the task as images (CVAT for images 1.1).")
        return found
    except (ET.ParseError, *_DAMAGE) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is no file of CVAT for images: {type(error).__name__}: {error}") from error


def _cvat_shape(node: ET.Element, height: int, width: int) -> Shape | None:
    values = node.attrib
    if node.tag == "box":
        box = tuple(float(values[side]) for side in ("xtl", "ytl", "xbr", "ybr"))
        turn = float(values.get("rotation", 0))
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        if turn:
            return Shape(values["label"], polygons=(rotated(box, turn, middle),))
        return Shape(values["label"], (box[0], box[1], box[2], box[3]))
    if node.tag == "polygon":
        pairs = [point.split(",") for point in values["points"].split(";")]
        return Shape(values["label"], polygons=(tuple((float(x), float(y)) for x, y in pairs),))
    if node.tag == "mask":  # runs of 0, 1, 0, ... row by row, within its box
        left, top, w, h = (int(float(values[key])) for key in ("left", "top", "width", "height"))
        runs = [int(run) for run in values["rle"].split(",")]
        flat = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8)
        mask = np.zeros((height, width), np.uint8)
        mask[top : top + h, left : left + w] = flat.reshape(h, w)[: height - top, : width - left]
        return Shape(values["label"], rle=_rle(mask))
    return None


def _rle(mask: np.ndarray) -> dict[str, Any]:
    code = mask_util.encode(np.asfortranarray(mask))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def read_label_studio(path: Path, classes: Sequence[str]) -> Found:
    """Label Studio's full json export: rectangles, also turned ones, and polygons, in percent of the sides. The first
    annotation of a task that nobody cancelled counts."""
    from .formats import load_json

    if path.is_dir():
        raise DataError(f"{path} is a folder: name the json that Label Studio exported.")
    content, found = load_json(path), Found(labels=tuple(classes))
    if not isinstance(content, list):
        raise DataError(f"{path} is no export of Label Studio, which is a list of tasks.")
    try:
        for task in content:
            given = task.get("annotations", task.get("completions", ()))
            results = next((a["result"] for a in given if not a.get("was_cancelled")), None)
            if results is None:
                found.left_out["task without annotation"] += 1
                continue
            shapes = []
            size = (None, None)
            for result in results:
                shape = _studio_shape(result)
                size = (result.get("original_width", size[0]), result.get("original_height", size[1]))
                if shape is None:
                    found.left_out[str(result.get("type"))] += 1
                else:
                    shapes.append(shape)
            found.items.append(Item(_studio_image(task["data"]), *size, tuple(shapes)))
    except _DAMAGE as error:
        raise DataError(f"{path} is no export of Label Studio: {type(error).__name__}: {error}") from error
    return found


def _studio_image(data: dict[str, Any]) -> str:
    """The image of a task: the value of "image", or the first that is a path; addresses lose their question mark."""
    texts = [data["image"]] if isinstance(data.get("image"), str) else [v for v in data.values() if isinstance(v, str)]
    text = next(text for text in texts if "." in text)
    return unquote(text.partition("?d=")[2] or text.partition("?")[0])


def _studio_shape(result: dict[str, Any]) -> Shape | None:
    kind, value = result.get("type"), result.get("value", {})
    names = value.get(str(kind)) or value.get("labels")
    if kind not in ("rectanglelabels", "polygonlabels", "rectangle", "polygon") or not names:
        return None
    w, h = result["original_width"] / 100, result["original_height"] / 100
    if "points" in value:
        return Shape(str(names[0]), polygons=(tuple((float(x) * w, float(y) * h) for x, y in value["points"]),))
    x, y = value["x"] * w, value["y"] * h
    box = (x, y, x + value["width"] * w, y + value["height"] * h)
    turn = value.get("rotation") or 0
    return Shape(str(names[0]), polygons=(rotated(box, turn, (x, y)),)) if turn else Shape(str(names[0]), box)
