"""Which knowledge level which module took, as pictures, where a policy lets modules choose levels."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyn_d2.evaluation.figures import save_figure

from .route_statistics import executed_percent, groups, load_images
from .routes import RouteTable

TAKEN, FIRST = "#a8c6e8", "#2f6fb3"


def taken_levels(table: RouteTable, image: int) -> list[tuple[int, list[int]]]:
    """The levels that were taken for an image, each with the modules that took it, both as numbers from 0; the level
    that was taken earliest comes first."""
    taken = table.levels()[image]
    found = [(level, np.flatnonzero(taken[:, level]).tolist()) for level in np.flatnonzero(taken.any(0)).tolist()]
    return sorted(found, key=lambda item: (item[1][0], item[0]))


def last_module(table: RouteTable, image: int) -> int:
    """How many of the modules that take levels ran for an image."""
    places = [list(table.unit_names).index(name) for name in table.level_modules]
    return int(sum(table.opened(place)[image, 0] for place in places))


def draw_level_use(table: RouteTable, path: str | Path) -> Path:
    """Heat map: for how many images each module took each level.

    Raises:
        ValueError: no module took any.
    """
    rates = 100 * table.levels().mean(0).T
    used = np.flatnonzero(rates.any(1))
    if not len(used):
        raise ValueError("no module took any level")
    modules = [str(name) for name in table.level_modules]
    figure = Figure(figsize=(min(max(6, 0.26 * len(modules) + 2.8), 18), max(2.6, 0.24 * len(used) + 1.6)))
    axis = figure.subplots()
    image = axis.imshow(rates[used], aspect="auto", cmap="YlGnBu", vmin=0, vmax=100, interpolation="nearest")
    axis.set_yticks(range(len(used)), [str(table.level_names[i]) for i in used], fontsize=7)
    step = max(1, len(modules) // 45)
    axis.set_xticks(range(0, len(modules), step), modules[::step], rotation=90, fontsize=7)
    axis.set_title("Which module recognises what")
    figure.colorbar(image, ax=axis, label="taken (% of images)", fraction=0.03, pad=0.02)
    return save_figure(figure, path)


def draw_levels(table: RouteTable, path: str | Path, count: int = 6) -> Path:
    """For an image of each of ``count`` classes, the levels that were taken, with the number of the first module that
    took each (dark) and of all others (light), up to the module at which the image stopped."""
    chosen = _examples(table, count)
    pixels, _ = load_images(table, chosen)
    total = len(table.level_modules)
    rows = [max(len(taken_levels(table, i)), 2) for i in chosen]
    figure = Figure(figsize=(10, 0.8 + sum(0.24 * n + 0.75 for n in rows)))
    grid = figure.subplots(
        len(chosen), 2, squeeze=False, width_ratios=[1, 4], height_ratios=[n + 2 for n in rows], sharex="col"
    )
    for (left, right), index in zip(grid, chosen, strict=True):
        left.set_axis_off()
        if index in pixels:
            left.imshow(pixels[index], interpolation="nearest")
        left.set_title(_class_name(table, index), fontsize=8)
        _draw_one(right, table, index, total)
    figure.suptitle("Levels that modules took, with the first module of each", fontsize=11)
    return save_figure(figure, path)


def _draw_one(axis: Axes, table: RouteTable, index: int, total: int) -> None:
    found, stop = taken_levels(table, index), last_module(table, index)
    for row, (_, modules) in enumerate(found):
        axis.barh([row] * len(modules), 1, left=np.array(modules) + 0.5, height=0.8,
                  color=[FIRST, *[TAKEN] * (len(modules) - 1)])  # fmt: skip
        axis.annotate(str(modules[0] + 1), (modules[0] + 1, row), ha="center", va="center", fontsize=6, color="white")
    axis.axvspan(stop + 0.5, total + 0.5, color="#eeeeee", zorder=0)
    axis.set_yticks(range(len(found)), [str(table.level_names[level]) for level, _ in found], fontsize=7)
    axis.set(xlim=(0.5, total + 0.5), ylim=(max(len(found), 1) - 0.4, -0.6))
    axis.set_title(f"({stop}/{total})" + ("" if found else ": no level was taken"), fontsize=8, loc="left")
    axis.tick_params(axis="x", labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def _examples(table: RouteTable, count: int) -> list[int]:
    """The image in the middle of each of evenly spread classes, least executed first; of unlabelled images any."""
    percent, members = executed_percent(table), list(groups(table).values())
    if len(members) == 1:
        members = np.array_split(members[0][np.argsort(percent[members[0]], kind="stable")], min(count, len(table)))
    members = sorted(members, key=lambda own: percent[own].mean())
    places = np.unique(np.linspace(0, len(members) - 1, min(count, len(members))).round().astype(int))
    middle = [own[np.argsort(percent[own], kind="stable")[len(own) // 2]] for own in (members[i] for i in places)]
    return [int(index) for index in middle]


def _class_name(table: RouteTable, index: int) -> str:
    label = int(table.labels[index])
    return str(table.class_names[label]) if 0 <= label < len(table.class_names) else ""
