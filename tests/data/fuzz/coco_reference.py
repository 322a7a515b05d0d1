"""A slow, obvious reading of a COCO or LVIS json: what each consumer of dyn_d2 has to take, and what to refuse.

Written from the documentation of the formats, and without a line of ``dyn_d2.data.validity``.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Who has to refuse a file for a fault: all that read it, all that evaluate, all that train, all that use masks; or only
# the check says it.
FILE, SCORE, TRAIN, MASK, SAID = "file", "score", "train", "mask", "said"
MOST_PIXELS = 2**32  # a run-length mask counts no further


@dataclass
class Reading:
    """What a file holds.

    Attributes:
        faults: (who has to refuse, what it is).
        names: of the classes, by number of class.
        records: file name below the image folder, id, width, height and objects of each image; an object is its class,
            box XYWH, crowd flag and mask (H, W) or None.
        masked: whether every object that is no crowd has a sound mask.
    """

    faults: list[tuple[str, str]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    records: list[tuple] = field(default_factory=list)
    masked: bool = True
    annotated: bool = True

    def faulty(self, *who: str) -> list[str]:
        """Faults of these consumers."""
        return [what for by, what in self.faults if by in who]


def read(content: Any, lvis: bool = False) -> Reading:
    """Read the parsed content of a json."""
    result = Reading()
    fault = result.faults.append
    if not isinstance(content, dict):
        fault((FILE, "no object"))
        return result
    result.annotated = "annotations" in content
    for section in ("images", "annotations", "categories"):
        if section == "annotations" and not result.annotated:
            continue
        if not isinstance(content.get(section), list):
            fault((FILE, f"{section} is no list"))
        elif not all(isinstance(entry, dict) for entry in content[section]):
            fault((FILE, f"{section} has an entry that is no object"))
    if result.faults:
        return result
    category_names: dict[int, str] = {}
    for category in content["categories"]:
        number, name = integer(category.get("id")), category.get("name")
        if number is None or not isinstance(name, str) or not name.strip():
            fault((FILE, f"category {number} {name}"))
        elif number in category_names or name in category_names.values():
            fault((FILE, "category twice"))
        else:
            category_names[number] = name
    order = sorted(category_names)
    result.names = [category_names[number] for number in order]
    if lvis:
        if order != list(range(1, len(order) + 1)):
            fault((FILE, "LVIS counts categories from 1"))
        synonyms = {integer(c.get("id")): c.get("synonyms") for c in content["categories"]}
        result.names = [
            s[0] if isinstance(s := synonyms[number], list) and s else category_names[number] for number in order
        ]
        if not all(isinstance(name, str) and name.strip() for name in result.names):
            fault((FILE, "a synonym is no name"))
    images: dict[Any, dict] = {}
    for image in content["images"]:
        number = identity(image.get("id"))
        sides = [integer(image.get(side)) for side in ("width", "height")]
        if (
            number is None
            or number in images
            or None in sides
            or min(sides) < 1
            or max(sides) > 2**20
            or sides[0] * sides[1] >= MOST_PIXELS
        ):
            fault((FILE, f"image {number} {sides}"))
            continue
        name = image.get("file_name")
        url = image.get("coco_url")
        if lvis and isinstance(url, str) and url:
            name = "/".join(url.split("/")[-2:])
        if not isinstance(name, str) or not name or "\0" in name or not writable(name):
            fault((FILE, "file_name"))
        if name in [other["name"] for other in images.values()]:
            fault((SAID, "file twice"))
        if lvis:
            for key in ("neg_category_ids", "not_exhaustive_category_ids"):
                listed = image.get(key)
                if listed is not None and not (
                    isinstance(listed, list) and all(integer(x) is not None for x in listed)
                ):
                    fault((FILE, key))
        images[number] = {"name": name, "sides": sides, "objects": []}
    if len({isinstance(number, str) for number in images}) > 1:
        fault((FILE, "ids of two types"))
    if not content["images"]:
        fault((SAID, "no images"))
    seen = []
    kept = []
    for annotation in content.get("annotations", []):
        number = identity(annotation.get("id"))
        if number is None or number in seen:
            fault((FILE, f"annotation {number}"))
        seen.append(number)
        image_id = identity(annotation.get("image_id"))
        if image_id not in images:
            other = [
                i
                for i in images
                if str(i) == str(image_id).strip() or (text_of(i) is not None and text_of(i) == image_id)
            ]
            fault((FILE if other and image_id is not None else SAID, f"image {image_id} of an annotation"))
            continue
        image = images[image_id]
        found = _annotation(annotation, image["sides"], order, lvis, fault)
        if found is not None:
            image["objects"].append(found)
            kept.append(found)
            if not found[2] and found[3] is None:
                result.masked = False
    if kept and all(crowd for _, _, crowd, _ in kept):
        fault((TRAIN, "all crowds"))
    result.records = [
        (images[i]["name"], i, *images[i]["sides"], images[i]["objects"])
        for i in sorted(images, key=lambda x: (str(type(x)), x))
    ]
    return result


def text_of(number: Any) -> int | None:
    """An id that is a text as a number, if it is one."""
    try:
        return int(number) if isinstance(number, str) and "_" not in number else None
    except ValueError:
        return None


def writable(text: str) -> bool:
    """Whether a text can be a file's name."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _annotation(annotation: dict, sides: list[int], order: list[int], lvis: bool, fault: Any) -> tuple | None:
    sound = True
    category = integer(annotation.get("category_id"))
    if category not in order:
        fault((FILE, f"category_id {category}"))
        sound = False
    flags = []
    for key in ("iscrowd", "ignore"):
        given = annotation.get(key)
        if lvis and key == "iscrowd":
            given = 0
        value = 0 if given is None else int(given) if isinstance(given, bool) else integer(given)
        if value not in (0, 1):
            fault((FILE, f"{key} {given}"))
            sound = False
        flags.append(value)
    if flags[1] == 1:
        fault((FILE, "ignore"))
        sound = False
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(finite(side) for side in box):
        fault((FILE, f"box {box}"))
        return None
    x, y, w, h = box = [float(side) for side in box]
    if x + w <= x or y + h <= y:
        fault((TRAIN, f"box {box} is empty"))
    elif x >= 0 and y >= 0 and x + w <= 1 and y + h <= 1 and box != [0, 0, 1, 1]:
        fault((TRAIN, f"box {box} is a fraction"))
    elif x < -1 or y < -1 or x + w > sides[0] + 1 or y + h > sides[1] + 1:
        fault((TRAIN, f"box {box} is outside"))
    area = annotation.get("area")
    if area is not None and not (finite(area) and 0 <= area <= 1e10):
        fault((SCORE, f"area {area}"))
    mask = _mask(annotation, sides, fault)
    return (order.index(category), box, flags[0], mask) if sound else None


def _mask(annotation: dict, sides: list[int], fault: Any) -> Any:
    """(H, W) bool of a mask by run lengths, the polygons as they are, or None."""
    mask, has = annotation.get("segmentation"), annotation.get("has_mask")
    if has is not None:
        has = int(has) if isinstance(has, bool) else integer(has)
        if has not in (0, 1):
            fault((MASK, f"has_mask {has}"))
            return None
        if not has:
            return None
    if mask is None or mask == [] or mask == {}:
        if has:
            fault((MASK, "has_mask without a mask"))
        return None
    if isinstance(mask, dict):
        lengths = run_lengths(mask, sides)
        if lengths is None:
            fault((MASK, "run lengths"))
            return None
        if not sum(lengths[1::2]):
            fault((SAID, "a mask without a pixel"))
        return pixels(lengths, sides)
    polygons = isinstance(mask, list) and all(
        isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 and all(finite(c) for c in p) for p in mask
    )
    if not polygons:
        fault((MASK, "polygons"))
        return None
    for polygon in mask:
        for axis, side in ((0, sides[0]), (1, sides[1])):
            if min(polygon[axis::2]) < -0.05 * side or max(polygon[axis::2]) > 1.05 * side:
                fault((MASK, "polygons outside"))
                return None
    if not any(shoelace(polygon) for polygon in mask):
        fault((SAID, "a mask without area"))
    return mask


def shoelace(polygon: list[float]) -> float:
    """Twice the area."""
    points = list(zip(polygon[0::2], polygon[1::2], strict=True))
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True))


def run_lengths(mask: dict, sides: list[int]) -> list[int] | None:
    """Runs of a mask, None where it is damaged."""
    size, counts = mask.get("size"), mask.get("counts")
    if not isinstance(size, list) or [integer(side) for side in size] != [sides[1], sides[0]]:
        return None
    if isinstance(counts, str):
        runs = inflate(counts)
    elif isinstance(counts, list) and all(isinstance(c, int) and not isinstance(c, bool) for c in counts):
        runs = counts
    else:
        return None
    if runs is None or any(run < 0 for run in runs) or sum(runs) != sides[0] * sides[1]:
        return None
    return runs


def inflate(counts: str) -> list[int] | None:
    """Runs of a compressed mask, one character at a time."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 30:
            return None
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs if runs and not shift else None


def pixels(lengths: list[int], sides: list[int]) -> np.ndarray | None:
    """(H, W) bool; None for a mask that is too large to look at."""
    if sides[0] * sides[1] > 10**7:
        return None
    column = [value % 2 for value, run in enumerate(lengths) for _ in range(run)]
    return np.array(column, dtype=bool).reshape(sides[0], sides[1]).T


def number(value: Any) -> bool:
    """Whether a value is a number of json."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite(value: Any) -> bool:
    """Whether it is a number that a float holds."""
    try:
        return number(value) and math.isfinite(float(value))
    except OverflowError:
        return False


def integer(value: Any) -> int | None:
    """The integer of 64 bits that a value is, 3.0 included."""
    if not finite(value) or value != int(value) or not -(2**63) < value < 2**63:
        return None
    return int(value)


def identity(value: Any) -> int | str | None:
    """An id."""
    if isinstance(value, str):
        return value if value and "\0" not in value else None
    return integer(value)
