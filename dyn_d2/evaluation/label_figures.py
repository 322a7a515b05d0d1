"""What a semantic segmentor sees in an image, as label maps: pictures and shares of the pixels.

Shape shorthand: H, W - height and width of the image; K - labels; D - depth of the concept tree.
"""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from dyn_d2.hierarchy import Hierarchy
from dyn_d2.methods.layer_cascade.backbone import STAGES

from .boxes_on_image import class_colour

STAGE_COLOURS = ("#2c7fb8", "#fecc5c", "#d7301f")
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

    def seen(self) -> list[tuple[int, float]]:
        """The labels in the image, each with its share of the pixels in percent, largest first."""
        numbers, counts = np.unique(self.numbers, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return [(int(numbers[i]), 100 * float(counts[i]) / self.numbers.size) for i in order]

    def shares(self) -> dict[str, float]:
        """The same by name, to a hundredth of a percent."""
        return {self.names[number]: round(share, 2) for number, share in self.seen()}


def label_colour(number: int) -> Any:
    """A colour for label ``number``; of hundreds of labels few look alike."""
    if number < 10:
        return class_colour(number)
    return colorsys.hsv_to_rgb(0.618 * number % 1, (0.85, 0.5)[number % 2], (0.95, 0.65)[number // 2 % 2])


def label_maps(
    output: Mapping[str, Tensor],
    classes: Sequence[str],
    colours: Sequence[Any] = (),
    tree: Hierarchy | None = None,
    concepts: Sequence[str] = (),
) -> list[LabelMap]:
    """The maps that the output of a segmentor holds.

    Args:
        output: "sem_seg" (K, H, W) scores; it may have "levels" (D + 1, H, W), numbers in ``tree.concepts`` at each
            depth, and "settled_by" (H, W), the stage of each pixel.
        classes, colours: of the labels; without colours a fixed palette.
        tree, concepts: for "levels": the concept tree, and the concept of each label.

    Returns:
        "depth 1" and so on where there are levels, "classes", which are the deepest level, and "settled by" where there
        are stages.
    """
    colours = list(colours) or [label_colour(number) for number in range(len(classes))]
    maps = []
    if "levels" in output:
        own = dict(zip(concepts, colours, strict=True))
        inner = [own.get(name) or label_colour(len(classes) + i) for i, name in enumerate(tree.concepts)]
        levels = output["levels"].cpu().numpy()[1:-1]  # at the root all are equal
        maps = [LabelMap(f"depth {depth}", level, tree.concepts, inner) for depth, level in enumerate(levels, 1)]
    maps.append(LabelMap("classes", output["sem_seg"].argmax(0).cpu().numpy(), classes, colours))
    if "settled_by" in output:
        maps.append(LabelMap("settled by", output["settled_by"].cpu().numpy(), STAGES, STAGE_COLOURS))
    return maps


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
