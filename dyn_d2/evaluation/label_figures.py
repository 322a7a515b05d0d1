"""What a semantic segmentor sees in an image, as label maps: pictures and shares of the pixels.

Shape shorthand: H, W - height and width of the image; K - labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from .palette import class_colour

OPACITY, PANEL, COLUMNS, LEGEND = 0.6, 4.2, 3, 14  # PANEL: its width in inches; LEGEND: most labels that are listed


@dataclass(frozen=True)
class LabelMap:
    """
    Attributes:
        title: what the labels are.
        numbers: (H, W) integers, the label of each pixel.
        names, colours: of each number.
    """

    title: str
    numbers: np.ndarray
    names: Sequence[str]
    colours: Sequence[Any]

    def pixels(self) -> np.ndarray:
        """The numbers as a picture's pixels, (H, W) of 8 bits, of 16 where there are more than 256 labels."""
        return np.asarray(self.numbers).astype(np.uint16 if len(self.names) > 256 else np.uint8)

    def seen(self) -> list[tuple[int, float]]:
        """The labels in the image, each with its share of the pixels in percent, largest first."""
        numbers, counts = np.unique(self.numbers, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return [(int(numbers[i]), 100 * float(counts[i]) / self.numbers.size) for i in order]

    def shares(self) -> dict[str, float]:
        """The same by name, to a hundredth of a percent."""
        return {self.names[number]: round(share, 2) for number, share in self.seen()}


def class_map(scores: Tensor, names: Sequence[str], colours: Sequence[Any] = ()) -> LabelMap:
    """The map of every segmentor, "classes": of each pixel the label with the largest score.

    Args:
        scores: (K, H, W).
        names, colours: of the labels; without colours a fixed palette.
    """
    colours = list(colours) or [class_colour(number) for number in range(len(names))]
    return LabelMap("classes", scores.argmax(0).cpu().numpy(), names, colours)


def draw_label_maps(image: np.ndarray, maps: Sequence[LabelMap]) -> Figure:
    """The image, and each map over it with a legend of the labels in it.

    Args:
        image: (H, W, 3) uint8, RGB.
    """
    columns = min(len(maps) + 1, COLUMNS)
    rows = -(-(len(maps) + 1) // columns)
    height = PANEL * float(np.clip(image.shape[0] / image.shape[1], 0.4, 2.5))
    legend = max(0.16 * -(-min(len(labels.seen()), LEGEND + 1) // 2) for labels in maps)  # two columns of lines
    figure = Figure(figsize=(columns * PANEL, rows * (height + legend + 0.3)), layout="constrained")
    first, *others = figure.subplots(rows, columns, squeeze=False).flat
    for axis in (first, *others):
        axis.set_axis_off()
    first.imshow(image)
    first.set_title("image", fontsize=9)
    for axis, labels in zip(others, maps, strict=False):  # the last row may have places left
        _draw(axis, image, labels)
    return figure


def _draw(axis: Axes, image: np.ndarray, labels: LabelMap) -> None:
    table = np.array([to_rgb(colour) for colour in labels.colours])
    axis.imshow((1 - OPACITY) * image / 255 + OPACITY * table[labels.numbers])
    axis.set_title(labels.title, fontsize=9)
    seen = labels.seen()
    handles = [Patch(color=labels.colours[n], label=f"{labels.names[n]} {share:.1f} %") for n, share in seen[:LEGEND]]
    if len(seen) > LEGEND:
        handles.append(Patch(color="none", label=f"and {len(seen) - LEGEND} more"))
    axis.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, fontsize=7, frameon=False)
