"""What a reader of annotations finds, before it becomes a json in COCO's format."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Point = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """One object, in pixels from the upper left corner of the image.

    Attributes:
        label: the name of its class.
        box: x0, y0, x1, y1 in any order; None where polygons or ``rle`` tell.
        polygons: of its mask, each a list of (x, y).
        rle: its mask as COCO's run lengths, in place of polygons.
        crowd: a region of many objects.
    """

    label: str
    box: tuple[float, float, float, float] | None = None
    polygons: tuple[tuple[Point, ...], ...] = ()
    rle: dict[str, Any] | None = None
    crowd: bool = False


@dataclass(frozen=True)
class Item:
    """An image: its name as the file of annotations has it, the size that this states, or None, and its objects."""

    name: str
    width: int | None
    height: int | None
    shapes: tuple[Shape, ...]


@dataclass
class Found:
    """All that a reader found.

    Attributes:
        labels: names of the classes in their order, where the format has one; else empty.
        left_out: kind of shape that no detector learns from (points, lines, ...) -> how many.
        folder: where the images are, if the format says so.
    """

    items: list[Item] = field(default_factory=list)
    labels: tuple[str, ...] = ()
    left_out: Counter[str] = field(default_factory=Counter)
    folder: str = ""


def rotated(box: Sequence[float], degrees: float, about: Point) -> tuple[Point, ...]:
    """The four corners of a box that is turned clockwise (y points down) around a point."""
    x0, y0, x1, y1 = box
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return tuple(
        (about[0] + (x - about[0]) * cos - (y - about[1]) * sin, about[1] + (x - about[0]) * sin + (y - about[1]) * cos)
        for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    )


def circle(middle: Point, edge: Point, corners: int = 32) -> tuple[Point, ...]:
    """A circle as a polygon."""
    radius = math.dist(middle, edge)
    turns = (2 * math.pi * i / corners for i in range(corners))
    return tuple((middle[0] + radius * math.cos(t), middle[1] + radius * math.sin(t)) for t in turns)
