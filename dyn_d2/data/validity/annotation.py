"""What is wrong with one annotation: its box, its mask, its area, its flags. None of it runs pycocotools."""

import math
from typing import Any

from . import rle
from .values import brief, flag, is_finite, is_number, is_sequence

# Rounding puts many published boxes a fraction of a pixel over the edge.
EDGE_TOLERANCE = 1.0
# Share of the image's side by which a polygon may leave it; published data sets have such corners.
MASK_TOLERANCE = 0.05
# COCO's evaluation takes an object of a larger area, or of a negative one, for something to ignore.
LARGEST_AREA = 1e10

XYXY, XYWH = 0, 1  # Detectron2's BoxMode.XYXY_ABS and XYWH_ABS

Defect = tuple[str, str]  # kind and description


def box_defect(box: Any, mode: Any, width: int | None, height: int | None) -> Defect | None:
    """Kind and description of what is wrong with a box, or None.

    Args:
        box: four numbers, absolute XYWH or XYXY by ``mode``.
        width, height: of the image; None where they are unknown.
    """
    if not isinstance(mode, int) or isinstance(mode, bool) or mode not in (XYXY, XYWH):
        return "bad_box", f"bbox_mode {mode!r} is neither XYWH_ABS nor XYXY_ABS"
    if not is_sequence(box) or len(box) != 4 or not all(is_number(value) for value in box):
        return "bad_box", f"box {brief(box)}"
    if not all(map(is_finite, box)):
        return "non_finite", f"box {brief(list(box))}"
    x0, y0, x1, y1 = map(float, box)
    if mode == XYWH:
        x1, y1 = x0 + x1, y0 + y1
    if x1 <= x0 or y1 <= y0:
        return "empty_box", f"box {list(box)} has width {x1 - x0:g} and height {y1 - y0:g}"
    if x0 >= 0 and y0 >= 0 and x1 <= 1 and y1 <= 1 and (x0, y0, x1, y1) != (0, 0, 1, 1):
        return "fraction_box", f"box {list(box)} is smaller than a pixel"
    if width is None or height is None:
        return None
    if min(x0, y0) < -EDGE_TOLERANCE or x1 > width + EDGE_TOLERANCE or y1 > height + EDGE_TOLERANCE:
        return "outside", f"box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) leaves the image of {width} x {height}"
    return None


def mask_defect(mask: Any, width: int | None, height: int | None) -> Defect | None:
    """Kind and description of what is wrong with a segmentation (polygons or run lengths), or None.

    None and an empty list are no mask, which is no defect.
    """
    if mask is None or (isinstance(mask, list | dict) and not mask):
        return None
    if isinstance(mask, dict):
        return _rle_defect(mask, width, height)
    if not isinstance(mask, list | tuple):
        return "bad_mask", f"segmentation {brief(mask)} is neither a list of polygons nor a run-length encoding"
    if not _sound(mask):
        return _polygon_defect(mask)
    return _extent_defect(mask, width, height) if width and height else None


def _rle_defect(mask: dict, width: int | None, height: int | None) -> Defect | None:
    try:
        rle.run_lengths(mask, height, width)
    except rle.RleError as error:
        return "bad_mask", str(error)
    return None


def _polygon_defect(mask: Any) -> Defect:
    if all(map(is_number, mask)):
        return "bad_mask", f"segmentation {brief(list(mask))} is one flat list, not a list of polygons: add brackets"
    for polygon in mask:
        if not is_sequence(polygon) or len(polygon) < 6 or len(polygon) % 2:
            return "bad_mask", f"polygon {brief(polygon)}"
        if not all(map(is_number, polygon)):
            return "bad_mask", f"polygon {brief(polygon)} has corners that are no numbers"
    return "bad_mask", "a polygon has coordinates that are no finite numbers"


def _extent_defect(mask: Any, width: int, height: int) -> Defect | None:
    x0, y0 = (min(min(polygon[axis::2]) for polygon in mask) for axis in (0, 1))
    x1, y1 = (max(max(polygon[axis::2]) for polygon in mask) for axis in (0, 1))
    across, down = MASK_TOLERANCE * width, MASK_TOLERANCE * height
    if x0 < -across or y0 < -down or x1 > width + across or y1 > height + down:
        what = f"its polygons reach from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}), outside the image of {width} x {height}"
        return "mask_outside", what
    return None


def empty_mask(mask: Any) -> Defect | None:
    """Kind and description of a mask without defect in which no pixel is, or None: published data sets have such masks,
    so that no reader refuses them, but no prediction can fit them."""
    if isinstance(mask, dict) and mask:
        return None if rle.area(rle.run_lengths(mask)) else ("empty_mask", "its run-length mask has no pixel")
    if mask and not any(_shoelace(polygon) for polygon in mask):
        return "empty_mask", f"its polygons have no area, the first is {brief(list(mask[0]))}"
    return None


def _shoelace(polygon: Any) -> float:
    """Area of one polygon x0, y0, x1, y1, ..."""
    x, y = polygon[0::2], polygon[1::2]
    return 0.5 * abs(sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x))))


def _sound(mask: Any) -> bool:
    """Whether these are polygons of finite numbers, without saying what is wrong: all of COCO in seconds."""
    try:
        # A sum is no finite number where one of its parts is none; only a bool would pass for one.
        return all(
            len(p) >= 6
            and len(p) % 2 == 0
            and math.isfinite(sum(p))
            and not isinstance(p, str | dict)
            and not ((0 in p or 1 in p) and any(isinstance(x, bool) for x in p))
            for p in mask
        )
    except (TypeError, OverflowError, KeyError, ValueError):  # something that is no number
        return False


def flagged_mask_defect(annotation: dict[str, Any], width: int | None, height: int | None) -> Defect | None:
    """The same of an annotation's "segmentation", which "has_mask" may call missing (it is not looked at then) or
    present."""
    mask, given = annotation.get("segmentation"), annotation.get("has_mask")
    has = given is not None and flag(given)
    if has is None:
        return "bad_flag", f'"has_mask" is {brief(given)}, neither true nor false'
    if given is not None and not has:
        return None
    missing = mask is None or (isinstance(mask, list | tuple | dict) and not mask)
    if has and missing:
        return "no_mask", "it says has_mask but has no segmentation"
    return mask_defect(mask, width, height)


def area_defect(annotation: dict[str, Any]) -> Defect | None:
    """Kind and description of what is wrong with an annotation's "area", or None; it may be missing or null."""
    area = annotation.get("area")
    if area is None:
        return None
    if not is_number(area):
        return "bad_area", f'"area" is {brief(area)}, no number'
    if not is_finite(area):
        return "bad_area", f'"area" is {area!r}'
    if not 0 <= area <= LARGEST_AREA:
        return "bad_area", f'"area" is {brief(area)}: evaluation would leave the object out'
    return None


def crowd_defect(annotation: dict[str, Any]) -> Defect | None:
    """Kind and description of what is wrong with "iscrowd" or "ignore", or None; they may be missing or null."""
    for key in ("iscrowd", "ignore"):
        if key in annotation and flag(annotation[key]) is None:
            return "bad_flag", f'"{key}" is {brief(annotation[key])}, neither 0 nor 1'
    if annotation.get("ignore"):
        return "ignore_flag", '"ignore" is set'
    return None


def annotation_area(annotation: dict[str, Any], height: int, width: int) -> float:
    """The "area" of a COCO annotation with a sound box; where it is missing or null that of its mask, or of its box
    where the mask is missing or damaged too.

    Polygons count by the shoelace formula, overlaps twice.
    """
    if annotation.get("area") is not None:
        return float(annotation["area"])
    mask = annotation.get("segmentation")
    if not isinstance(mask, list | tuple | dict) or not mask or flagged_mask_defect(annotation, width, height):
        return float(annotation["bbox"][2] * annotation["bbox"][3])
    if isinstance(mask, dict):
        return float(rle.area(rle.run_lengths(mask, height, width)))
    return float(sum(map(_shoelace, mask)))
