"""From what a reader found to a json in COCO's format, with images looked up by their names."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pycocotools.mask as mask_util

from dyn_d2.data.custom.yolo import image_size, images_in
from dyn_d2.data.validity.coco import DataError

from .items import Found, Item, Shape

_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded file


@dataclass
class Converted:
    """A json in COCO's format, and what there is to say about it.

    Attributes:
        missing: names of images that are not in the folder; they are left out.
        cut: objects that lay outside of their image in part, and were cut.
        empty: objects without area inside of their image, left out.
        left_out: see ``Found``.
    """

    content: dict[str, Any]
    missing: list[str] = field(default_factory=list)
    cut: int = 0
    empty: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def coco_of_items(found: Found, folder: Path) -> Converted:
    """Categories from 1, in the order of the format or else of the alphabet; ``file_name`` relative to ``folder``,
    absolute where the annotations name a file elsewhere.

    Raises:
        DataError: none of the images is below the folder, two are the same file, one has another size than the
            annotations state, or an object has a class that the labels lack.
    """
    images = _Images(folder)
    labels = list(found.labels) or sorted({shape.label for item in found.items for shape in item.shapes})
    result = Converted({}, left_out=found.left_out)
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    taken: dict[Path, str] = {}
    for item in found.items:
        path = images.find(item)
        if path is None:
            result.missing.append(item.name)
            continue
        if path in taken:
            raise DataError(
                f"{path} would be both {taken[path]} and {item.name}: name the folder that holds the folders of all "
                "images with --images, or take one of the two out of the annotations."
            )
        taken[path] = item.name
        width, height = image_size(path)
        _check_size(item, path, width, height)
        name = path.relative_to(folder) if path.is_relative_to(folder) else path
        records.append({"id": len(records) + 1, "file_name": name.as_posix(), "width": width, "height": height})
        for shape in item.shapes:
            if shape.label not in labels:
                raise DataError(f"{item.name} has an object of class {shape.label!r}, none of {', '.join(labels)}.")
            value, cut = _annotation(shape, width, height)
            result.cut += cut
            if value is None:
                result.empty += 1
                continue
            ids = {"id": len(annotations) + 1, "image_id": len(records), "category_id": labels.index(shape.label) + 1}
            annotations.append({**ids, **value})
    if not records:
        raise DataError(
            f"none of the {len(found.items)} images is below {folder}: the first is called {found.items[0].name}. Name "
            "the folder of the images with --images."
        )
    categories = [{"id": i, "name": name} for i, name in enumerate(labels, 1)]
    result.content = {"images": records, "annotations": annotations, "categories": categories}
    return result


class _Images:
    """The images below a folder by their names, whatever folders and endings annotations put around these."""

    def __init__(self, folder: Path) -> None:
        self._by_path: dict[str, Path] = {}
        self._by_name: dict[str, list[Path]] = {}
        self._by_stem: dict[str, list[Path]] = {}
        for path in images_in(folder):
            self._by_path[path.relative_to(folder).as_posix()] = path
            self._by_name.setdefault(path.name, []).append(path)
            self._by_stem.setdefault(path.stem, []).append(path)

    def find(self, item: Item) -> Path | None:
        """The image of an item; one whose name several have is found by its folders only."""
        name = PurePosixPath(item.name.replace("\\", "/"))
        parts = [part for part in name.parts if part not in ("..", "/")]
        for begin in range(len(parts)):
            if found := self._by_path.get("/".join(parts[begin:])):
                return found
        for key in (name.name, _UPLOADED.sub("", name.name)):
            places = (
                self._by_name.get(key) or self._by_stem.get(key) or self._by_stem.get(PurePosixPath(key).stem) or []
            )
            if len(places) == 1:
                return places[0]
            if len(places) > 1:
                raise DataError(
                    f"{item.name}: {len(places)} images have that name, such as {places[0]} and {places[1]}."
                )
        return Path(os.path.abspath(item.name)) if name.is_absolute() and Path(item.name).is_file() else None


def _check_size(item: Item, path: Path, width: int, height: int) -> None:
    """Boxes in pixels would be wrong, without a sign of it, on an image that was resized or turned since.

    Raises:
        DataError: the annotations state another size; None or 0, as some programs write it, states nothing.
    """
    if (item.width or width, item.height or height) != (width, height):
        raise DataError(
            f"{path} has {width} x {height} pixels, turned as its EXIF mark says, but its annotations are for "
            f"{item.width} x {item.height}: give the images that were annotated (if only the mark differs, save them "
            "upright, without it), or annotate these."
        )


def _annotation(shape: Shape, width: int, height: int) -> tuple[dict[str, Any] | None, bool]:
    """Box, area, crowd flag and mask of an object, and whether it was cut; None where nothing is left."""
    if shape.rle is not None:
        code = shape.rle
        if isinstance(code["counts"], list):
            code = mask_util.frPyObjects(code, *code["size"])
        x, y, w, h = map(float, mask_util.toBbox(code))
        area = float(mask_util.area(code))
        value = {"bbox": [x, y, w, h], "area": area, "iscrowd": int(shape.crowd), "segmentation": shape.rle}
        return (value if area else None), False
    points = [point for polygon in shape.polygons for point in polygon]
    if shape.box is not None and not points:
        points = [(shape.box[0], shape.box[1]), (shape.box[2], shape.box[3])]
    sides = _sides(points)
    x0, x1 = (min(max(side, 0.0), float(width)) for side in sides[::2])
    y0, y1 = (min(max(side, 0.0), float(height)) for side in sides[1::2])
    cut = (x0, y0, x1, y1) != sides
    if x1 <= x0 or y1 <= y0:
        return None, cut
    box: dict[str, Any] = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
    box["iscrowd"] = int(shape.crowd)
    if shape.polygons:
        box["segmentation"] = [_within(polygon, width, height) for polygon in shape.polygons if len(polygon) > 2]
        box["area"] = sum(_area(flat) for flat in box["segmentation"])
    return box, cut


def _sides(points: Sequence[tuple[float, float]]) -> tuple[float, float, float, float]:
    xs, ys = [float(x) for x, _ in points], [float(y) for _, y in points]
    return min(xs), min(ys), max(xs), max(ys)


def _within(polygon: Sequence[tuple[float, float]], width: int, height: int) -> list[float]:
    return [
        min(max(float(value), 0.0), float(height if i else width)) for point in polygon for i, value in enumerate(point)
    ]


def _area(flat: Sequence[float]) -> float:
    xs, ys = flat[::2], flat[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2
