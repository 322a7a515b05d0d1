"""Objects drawn on an image with labels that do not lie on each other; small images too.

Boxes are (x0, y0, x1, y1) in pixels of the image.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from detectron2.structures import Instances

from .palette import class_colour, letters_on

LETTER_WIDTH, LETTER_HEIGHT = 0.62, 1.45  # mean extent of a label's letters, in font sizes
Rectangle4 = tuple[float, float, float, float]


def draw_objects(
    axis: Axes,
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[str],
    colours: Sequence[Any],
    masks: np.ndarray | None = None,
    font_size: float = 7,
) -> None:
    """Fill ``axis``, whose size has to be final, with an image and its objects.

    Args:
        image: (H, W, 3) uint8, RGB.
        boxes: (N, 4).
        labels, colours: of each object; the first ones get the best places for their labels.
        masks: (N, H, W) bool.
        font_size: in points.
    """
    height, width = image.shape[:2]
    axis.axis("off")
    if masks is not None and len(masks):
        image = with_masks(image, masks, colours)
    axis.imshow(image, interpolation="nearest", extent=(0, width, height, 0))
    figure = axis.figure
    assert isinstance(figure, Figure)  # the position is in shares of the whole figure
    inches = axis.get_position().width * figure.get_figwidth(), axis.get_position().height * figure.get_figheight()
    points = 72 * min(inches[0] / width, inches[1] / height)  # of one pixel: the axis keeps the aspect ratio
    letter = LETTER_WIDTH * font_size / points, LETTER_HEIGHT * font_size / points
    taken: list[Rectangle4] = []
    for box, label, colour in zip(np.asarray(boxes, dtype=float).reshape(-1, 4), labels, colours, strict=True):
        x0, y0, x1, y1 = box.tolist()
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=0.22 * font_size))
        place = label_place(box.tolist(), (letter[0] * len(label), letter[1]), (width, height), taken)
        taken.append(place)
        axis.text(
            place[0], (place[1] + place[3]) / 2, label, fontsize=font_size, color=letters_on(colour), va="center",
            ha="left", clip_on=True, bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
        )  # fmt: skip
    axis.set(xlim=(0, width), ylim=(height, 0))


def picture(image: np.ndarray, boxes: np.ndarray, labels: Sequence[str], classes: Sequence[int], **more: Any) -> Figure:
    """One image with its objects, coloured by class, as a figure of at least 480 pixels (of at most 1600)."""
    longer = max(image.shape[:2])
    scale = min(max(480, longer), 1600) / longer / 100
    figure = Figure(figsize=(image.shape[1] * scale, image.shape[0] * scale), dpi=100)
    axis = figure.add_axes((0, 0, 1, 1))
    font_size = float(np.clip(0.016 * longer * scale * 100, 7, 14))
    draw_objects(axis, image, boxes, labels, [class_colour(c) for c in classes], font_size=font_size, **more)
    return figure


def picture_with_lines(image: np.ndarray, lines: Sequence[str]) -> Figure:
    """One image of at least 480 pixels (of at most 1600), with lines of text below it."""
    longer = max(image.shape[:2])
    scale = min(max(480, longer), 1600) / longer / 100
    width, height, below = image.shape[1] * scale, image.shape[0] * scale, 0.2 * (len(lines) + 1)
    figure = Figure(figsize=(max(width, 2.5), height + below), dpi=100)
    axis = figure.add_axes((0, below / (height + below), 1, height / (height + below)))
    axis.axis("off")
    axis.imshow(image, interpolation="nearest")
    figure.text(0.1 / figure.get_figwidth(), 0.08 / (height + below), "\n".join(lines), fontsize=9, va="bottom")
    return figure


def best_of(found: Instances, threshold: float, top: int) -> tuple[Instances, str]:
    """What of an image's detections to show, and that in words.

    Args:
        found: best first.
        threshold: those with this score are shown.
        top: how many where none has it.
    """
    above = found[found.scores >= threshold]
    if len(above):
        return above, f"{len(above)} with score >= {threshold:g}"
    if not len(found):
        return found, "nothing found"
    best = found[:top]
    return best, f"nothing reaches {threshold:g}; the best {len(best)} are shown"


def labels_of(found: Instances, classes: Sequence[str]) -> list[str]:
    """Class and score of each detection."""
    return [f"{classes[c]} {s:.2f}" for c, s in zip(found.pred_classes.tolist(), found.scores.tolist(), strict=True)]


def picture_names(images: Sequence[str]) -> list[str]:
    """File names of the pictures; images of the same name in different folders get a number."""
    names: dict[str, None] = {}
    for file in images:
        stem = Path(urlsplit(file).path if "://" in file else file).stem or "image"
        numbered = (f"{stem}_{number}.png" if number else f"{stem}.png" for number in itertools.count())
        names[next(name for name in numbered if name not in names)] = None
    return list(names)


def label_place(
    box: Sequence[float], size: tuple[float, float], image_size: tuple[int, int], taken: Sequence[Rectangle4]
) -> Rectangle4:
    """The place of a label beside ``box`` that covers the least of ``taken``, within the image where it fits there.

    Args:
        size, image_size: (width, height) in pixels.
    """
    (x0, y0, x1, y1), (width, height), (right, bottom) = box, size, image_size
    corners = [
        (x0, y0 - height), (x0, y1), (x1 - width, y0 - height), (x1 - width, y1),  # outside: the object stays visible
        (x1, y0), (x0 - width, y0), (x1, y1 - height), (x0 - width, y1 - height),
        (x0, y0), (x0, y1 - height),
    ]  # fmt: skip
    best: Rectangle4 | None = None
    least = np.inf
    for rank, (x, y) in enumerate(corners):
        x, y = max(0.0, min(x, right - width)), max(0.0, min(y, bottom - height))
        place = (x, y, x + width, y + height)
        # A little for its rank, so that the first free corner wins.
        cost = sum(_overlap(place, other) for other in taken) + 0.3 * _overlap(place, (x0, y0, x1, y1)) + 0.01 * rank
        if cost < least:
            best, least = place, cost
    assert best is not None  # some corner costs less than infinity
    return best


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def with_masks(image: np.ndarray, masks: np.ndarray, colours: Sequence[Any], opacity: float = 0.4) -> np.ndarray:
    """(H, W, 3) uint8 image with (N, H, W) masks laid over it."""
    mixed = image.astype(float)
    for mask, colour in zip(masks.astype(bool), colours, strict=True):
        mixed[mask] = (1 - opacity) * mixed[mask] + opacity * 255 * np.array(matplotlib.colors.to_rgb(colour))
    return mixed.round().astype(np.uint8)
