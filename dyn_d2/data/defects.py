"""What is wrong with one value of an annotation: its box, its mask, its area."""

import math
import numbers
from typing import Any

from detectron2.structures import BoxMode

# Rounding puts many published boxes a fraction of a pixel over the edge.
EDGE_TOLERANCE = 1.0
# Share of the image's side by which a polygon may leave it; published data sets have such corners.
MASK_TOLERANCE = 0.05


def box_defect(box: Any, mode: Any, width: int | None, height: int | None) -> tuple[str, str] | None:
    """Kind and description of what is wrong with a box, or None.

    Args:
        box: four numbers, absolute XYWH or XYXY by ``mode``.
        width, height: of the image; None where they are unknown.
    """
    if mode not in (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS):
        return "bad_box", f"bbox_mode {mode!r} is neither XYWH_ABS nor XYXY_ABS"
    if not hasattr(box, "__len__") or len(box) != 4 or not all(is_number(value) for value in box):
        return "bad_box", f"box {box!r}"
    if not all(map(math.isfinite, box)):
        return "non_finite", f"box {list(box)}"
    x0, y0, x1, y1 = BoxMode.convert(list(map(float, box)), mode, BoxMode.XYXY_ABS)
    if x1 <= x0 or y1 <= y0:
        return "empty_box", f"box {list(box)} has width {x1 - x0:g} and height {y1 - y0:g}"
    if width is None or height is None:
        return None
    if min(x0, y0) < -EDGE_TOLERANCE or x1 > width + EDGE_TOLERANCE or y1 > height + EDGE_TOLERANCE:
        return "outside", f"box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) leaves the image of {width} x {height}"
    return None


def mask_defect(mask: Any, width: int | None, height: int | None) -> tuple[str, str] | None:
    """Kind and description of what is wrong with a segmentation (polygons or run lengths), or None."""
    if not isinstance(mask, list | dict) or not mask:
        return None
    if isinstance(mask, dict):
        if "counts" not in mask or (width is not None and list(mask.get("size", [])) != [height, width]):
            return "bad_mask", f"run-length mask of size {mask.get('size')} in an image of {width} x {height}"
        return None
    if not _sound(mask):
        for polygon in mask:
            if not hasattr(polygon, "__len__") or len(polygon) < 6 or len(polygon) % 2:
                return "bad_mask", f"polygon {polygon!r}"
        return "non_finite", "a polygon has coordinates that are no finite numbers"
    if not width or not height:
        return None
    x0, y0 = (min(min(polygon[axis::2]) for polygon in mask) for axis in (0, 1))
    x1, y1 = (max(max(polygon[axis::2]) for polygon in mask) for axis in (0, 1))
    across, down = MASK_TOLERANCE * width, MASK_TOLERANCE * height
    if x0 < -across or y0 < -down or x1 > width + across or y1 > height + down:
        what = f"its polygons reach from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}), outside the image of {width} x {height}"
        return "mask_outside", what
    return None


def _sound(mask: list) -> bool:
    """Whether these are polygons of finite numbers, without saying what is wrong: all of COCO in seconds."""
    try:
        return all(len(p) >= 6 and len(p) % 2 == 0 and math.isfinite(sum(p)) for p in mask)
    except (TypeError, OverflowError):  # something that is no number
        return False


def flagged_mask_defect(annotation: dict[str, Any], width: int | None, height: int | None) -> tuple[str, str] | None:
    """The same of an annotation's "segmentation", which "has_mask" may call missing (it is not looked at then) or
    present."""
    mask, flag = annotation.get("segmentation"), annotation.get("has_mask")
    if flag and (mask is None or not len(mask)):
        return "no_mask", "it says has_mask but has no segmentation"
    return None if flag is not None and not flag else mask_defect(mask, width, height)


def area_defect(annotation: dict[str, Any]) -> tuple[str, str] | None:
    """Kind and description of what is wrong with an annotation's "area", or None; it may be missing."""
    area = annotation.get("area")
    if area is None or (is_number(area) and math.isfinite(area)):
        return None
    return "non_finite", f'"area" is {area!r}'


def is_number(value: Any) -> bool:
    """Whether ``value`` is a real number of any type, and no bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    """Whether ``value`` is an integer of any type, and no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
