"""A concept tree as a picture: indented lines in columns, as a list of folders is drawn."""

from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dyn_d2.hierarchy import Hierarchy

_ROW, _COLUMN = 0.155, 3.7  # inches
_INDENT, _DOT = 0.13, 0.1  # inches
_MOST_ROWS = 95  # in a column


@dataclass(frozen=True)
class Row:
    """A line of the picture.

    Attributes:
        more: for each depth from 1 to the row's own, whether another child of the same parent follows further down.
        again: it was drawn before, below its main parent; its children are not repeated.
    """

    concept: str
    more: tuple[bool, ...]
    again: bool = False


def tree_rows(tree: Hierarchy) -> list[Row]:
    """All concepts, each with all below it; those with several parents also below the others, once a parent."""
    rows: list[Row] = []

    def add(concept: str, more: tuple[bool, ...], parent: str | None) -> None:
        again = parent is not None and tree.parents[concept][0] != parent
        rows.append(Row(concept, more, again))
        below = () if again else tree.children[concept]
        for child in below:
            add(child, (*more, child != below[-1]), concept)

    add(tree.root, (), None)
    return rows


def pixel_shares(tree: Hierarchy, dataset: str, pixels: Mapping[str, int]) -> dict[str, float]:
    """The share (0..1) of the labelled pixels on and below each concept that leads to a label of ``dataset``.

    Args:
        pixels: label -> number of pixels.
    """
    total, shares = max(sum(pixels.values()), 1), dict.fromkeys(tree.cut(dataset).concepts, 0.0)
    for label, concept in tree.labels(dataset).items():
        for name in (concept, *tree.ancestors(concept)):
            shares[name] += pixels[label] / total
    return shares


def draw_tree(tree: Hierarchy, shares: Mapping[str, float] | None = None, title: str | None = None) -> Figure:
    """Concepts with children are bold; a dot in the colour of a data set says that it has a label there.

    Args:
        shares: from :func:`pixel_shares`; written beside the concepts. Those with nothing are red.
        title: default the name of the tree with its numbers.
    """
    rows = tree_rows(tree)
    columns = -(-len(rows) // _MOST_ROWS)
    height = -(-len(rows) // columns)
    figure = Figure(figsize=(_COLUMN * columns, _ROW * (height + 1) + 0.6))
    colours = _colours(tree)
    for number in range(columns):
        part = rows[number * height : (number + 1) * height]
        axes = figure.add_axes((number / columns, 0, 1 / columns, 1 - 0.6 / figure.get_figheight()))
        axes.set(xlim=(0, _COLUMN), ylim=(height + 0.5, -0.7))
        axes.axis("off")
        for place, row in enumerate(part):
            _draw_row(axes, place, row, tree, colours, shares)
    summary = f"{tree.name}: {len(tree.concepts)} concepts, {len(tree.neurons)} with children, depth {tree.max_depth}"
    figure.text(0.1 / figure.get_figwidth(), 1, title or summary, fontsize=11, weight="bold", va="top")
    handles = [
        Line2D([], [], marker="o", linestyle="", markersize=4, color=colour, label=f"{name} ({len(tree.labels(name))})")
        for name, colour in colours.items()
    ]
    if handles:
        per_row = max(1, int(figure.get_figwidth() // 1.7))
        legend = {"fontsize": 7, "frameon": False, "handletextpad": 0, "borderpad": 0, "columnspacing": 1}
        corner = (0.05 / figure.get_figwidth(), 1 - 0.22 / figure.get_figheight())
        figure.legend(handles=handles, loc="upper left", bbox_to_anchor=corner, ncols=per_row, **legend)
    return figure


def _colours(tree: Hierarchy) -> dict[str, tuple]:
    palette = matplotlib.colormaps["tab10"]
    return {name: palette(number % 10) for number, name in enumerate(tree.datasets)}


def _draw_row(
    axes: Axes, place: int, row: Row, tree: Hierarchy, colours: Mapping[str, tuple], shares: Mapping[str, float] | None
) -> None:
    depth, grey = len(row.more), "0.65"
    if place % 2:
        axes.axhspan(place - 0.5, place + 0.5, color="0.96", linewidth=0)
    for level, more in enumerate(row.more, 1):
        x = 0.15 + _INDENT * (level - 1)
        if level == depth:
            axes.plot([x, x], [place - 0.5, place], [x, x + 0.7 * _INDENT], [place, place], color=grey, linewidth=0.6)
        if more:
            bottom_half = [place - (0 if level == depth else 0.5), place + 0.5]
            axes.plot([x, x], bottom_half, color=grey, linewidth=0.6)
    empty = shares is not None and shares.get(row.concept) == 0
    weight = "bold" if tree.children[row.concept] and not row.again else "normal"
    colour = "0.5" if row.again else "#cc3311" if empty else "black"
    text = row.concept + (" (see above)" if row.again else "")
    axes.text(0.12 + _INDENT * depth, place, text, fontsize=7, weight=weight, color=colour, va="center_baseline")
    right = _COLUMN - 0.2
    for number, (name, dot) in enumerate(reversed(list(colours.items()))):
        if row.concept in tree.labels(name).values():
            axes.plot(right - _DOT * number, place, "o", color=dot, markersize=3.5)
    if shares is not None and row.concept in shares:
        words = "absent" if empty else f"{100 * shares[row.concept]:.3g} %"
        x = right - _DOT * len(colours) - 0.05
        axes.text(x, place, words, fontsize=6, ha="right", va="center_baseline", color=colour)
