"""Pascal VOC's annotation files, read in one way by loaders, check and evaluators.

Texts are stripped of white space everywhere. Boxes keep their fractions. "difficult" is 0 where it is missing, empty or
"Unspecified", as annotation tools write a field that nobody filled in.
"""

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .coco import DataError
from .values import brief, is_finite, size

SIDES = ("xmin", "ymin", "xmax", "ymax")
_FLAG = re.compile(r"\s+(-1|0|1)$")  # of a class in an image
_DIFFICULT = {"": 0, "0": 0, "1": 1, "unspecified": 0}


@dataclass(frozen=True)
class VocObject:
    """One object: its class, its box xmin, ymin, xmax, ymax in pixels from 1 as in the file, and its mark."""

    name: str
    box: tuple[float, float, float, float]
    difficult: int


@dataclass(frozen=True)
class VocImage:
    """Size of an image, None where nobody asked for it, and its objects in the order of the file."""

    width: int | None
    height: int | None
    objects: tuple[VocObject, ...]


def image_list(dirname: str | os.PathLike, split: str) -> Path:
    """The file that lists the images of a split."""
    return Path(dirname) / "ImageSets" / "Main" / f"{split}.txt"


def image_ids(path: str | os.PathLike, *, repeated: bool = False) -> list[str]:
    """Image ids of a list, one a line; they may hold spaces. VOC's own lists of a class have a flag behind each.

    Args:
        repeated: let ids occur several times, for a check that reports them.

    Raises:
        FileNotFoundError: no such file.
        DataError: it is no text, or lists an image twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file: {error}. Write it in UTF-8.") from error
    if odd := next((c for c in text if c not in " \t\n" and (c < " " or c in "\x85\u2028\u2029")), None):
        raise DataError(f"{path} holds the character {odd!r}, which belongs into no list of images.")
    ids = _without_flags([line.strip() for line in text.split("\n") if line.strip()])
    if not repeated and len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise DataError(f"{path} lists {twice!r} {ids.count(twice)} times: keep one line of each image.")
    wrong = [i for i in ids if "/" in i or "\\" in i or "\0" in i]
    if wrong:
        raise DataError(f"{path} lists {brief(wrong[0])}, which is no name of an image: give it without folder.")
    return ids


def _without_flags(lines: Sequence[str]) -> list[str]:
    """Only a flag in every line is a column: in "photo 1" beside "photo 2", or "photo 0", the number is of the name."""
    names = [_FLAG.sub("", line) for line in lines]
    flagged = all(map(_FLAG.search, lines)) and len(set(names)) == len(set(lines))
    return names if flagged else list(lines)


def read_xml(path: str | os.PathLike, sized: bool = True) -> VocImage:
    """Read an annotation file; one that is unchanged since it was read is not read again.

    Args:
        sized: it has to give the size of the image, which evaluation does not read.

    Raises:
        FileNotFoundError: no such file.
        DataError: it is broken, or lacks a field or has a value that is none; names the file and the object.
    """
    stat = os.stat(path)
    return _read_xml(os.fspath(path), sized, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=20_000)
def _read_xml(path: str, sized: bool, length: int, time: int) -> VocImage:
    try:
        root = ET.parse(path).getroot()
        width, height = (_side(root, side) if sized else None for side in ("width", "height"))
        objects = tuple(_object(item, position) for position, item in enumerate(root.findall("object")))
    except (ET.ParseError, ValueError, LookupError, RecursionError) as error:  # LookupError: of an unknown encoding
        raise DataError(f"{path} is not a valid Pascal VOC annotation: {error}") from error
    return VocImage(width, height, objects)


def _side(root: ET.Element, tag: str) -> int:
    text = _text(root, f"size/{tag}")
    number = size(_number(text))
    if number is None:
        raise ValueError(f"<{tag}> of the image is {brief(text)}, no positive number of pixels")
    return number


def _object(item: ET.Element, position: int) -> VocObject:
    try:
        name = _text(item, "name")
        if not name:
            raise ValueError("<name> is empty")
        texts = [_text(item, f"bndbox/{side}") for side in SIDES]
        box = [side for side in map(_number, texts) if is_finite(side)]
        if len(box) < len(SIDES):
            raise ValueError(f"the box {texts} is not four numbers")
        text = "" if _only(item, "difficult") is None else _text(item, "difficult")
        number = _number(text)
        difficult = _DIFFICULT.get(text.lower(), int(number) if number in (0, 1) else None)
        if difficult is None:
            raise ValueError(f"<difficult> is {brief(text)}, neither 0 nor 1")
    except ValueError as error:
        raise ValueError(f"object {position}: {error}") from error
    x0, y0, x1, y1 = box
    return VocObject(name, (x0, y0, x1, y1), difficult)


def _text(element: ET.Element, tag: str) -> str:
    """Text of an element's only ``tag``, a path, stripped."""
    found = _only(element, tag)
    if found is None:
        raise ValueError(f"no <{tag}>")
    if any(isinstance(child.tag, str) for child in found):
        raise ValueError(f"<{tag}> has elements where a text belongs")
    return "".join(found.itertext()).strip()


def _only(element: ET.Element, tag: str) -> ET.Element | None:
    """The element of a path; None where there is none.

    Raises:
        ValueError: there are two, and nobody can tell which of them counts.
    """
    found = [element]
    for name in tag.split("/"):
        found = [child for parent in found for child in parent.findall(name)]
        if len(found) > 1:
            raise ValueError(f"{len(found)} times <{name}>")
    return found[0] if found else None


def _number(text: str) -> float | None:
    """Python's own notation has more than numbers: "1_0", "nan", digits of other scripts."""
    try:
        return float(text) if text.isascii() and "_" not in text else None
    except ValueError:
        return None
