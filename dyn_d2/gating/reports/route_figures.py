"""Pictures of the routes of images.

They follow SkipNet's Figs. 2.10 to 2.13, DeepMoE's 3.4 and CDB's 5 and 6; see the sources in ``policies/__init__.py``.
"""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dyn_d2.evaluation.figures import save_figure

from .level_figures import draw_level_use, draw_levels
from .route_statistics import (
    ALL_IMAGES,
    class_rates,
    class_similarity,
    columns,
    executed_percent,
    extremes,
    groups,
    load_images,
    use_of_elements,
)
from .routes import RouteTable

STAGE_COLOURS = ("#4477aa", "#228833", "#ccaa22", "#cc6677", "#aa3377", "#66aabb")
RATES = "YlGnBu"  # of heat maps
MOST_CLASSES = 60  # that a picture has room for


def draw_routes(table: RouteTable, folder: str | Path, prefix: str = "", images: int = 6) -> dict[str, str]:
    """All pictures of one table as png files.

    Args:
        prefix: of the file names.
        images: how many easy and how many hard images of each class are shown.

    Returns:
        What each shows -> its path, or why there is none.

    Raises:
        ValueError: there is no image in the table.
    """
    if not len(table):
        raise ValueError("there are no routes to draw: the evaluation saw no image.")
    draw = {
        "execution rate of each block": (draw_rates, "execution_rate"),
        "executed multiply-adds": (lambda t, p: draw_distribution({"": t}, p), "executed"),
        "execution rate per class": (draw_class_rates, "rate_per_class"),
        "classes, easy to hard": (draw_classes, "classes"),
        "use of groups or channels": (draw_elements, "elements"),
        "similarity of the classes' routes": (draw_similarity, "class_similarity"),
        "easiest and hardest images": (lambda t, p: draw_extremes(t, p, images), "easiest_hardest"),
    }
    if len(table.level_names):
        draw["levels by module"] = draw_level_use, "level_use"
        draw["levels of some images"] = (lambda t, p: draw_levels(t, p, images), "levels")
    drawn: dict[str, str] = {}
    for what, (function, name) in draw.items():
        try:
            drawn[what] = str(function(table, Path(folder, f"{prefix}{name}.png")))
        except ValueError as error:
            drawn[what] = f"none: {error}"
    return drawn


def draw_rates(table: RouteTable, path: str | Path) -> Path:
    """A bar a unit, coloured by stage: for how many images it runs (SkipNet, Fig. 2.10: one minus the skip ratio)."""
    rates = 100 * table.rates().mean(0)
    count = len(rates)
    figure = Figure(figsize=(min(max(5, 0.34 * count + 1.5), 16), 3.6))
    axis = figure.subplots()
    axis.bar(range(count), rates, width=0.8, color=[_stage_colour(table, unit) for unit in range(count)])
    axis.set(ylim=(0, 105), ylabel="executed (% of images)", xlim=(-0.7, count - 0.3))
    axis.set_title("How often each unit runs")
    _unit_ticks(axis, [str(name) for name in table.unit_names])
    _tidy(axis)
    return save_figure(figure, path)


def _stage_colour(table: RouteTable, unit: int) -> str:
    stages = list(dict.fromkeys(table.unit_stages.tolist()))
    return STAGE_COLOURS[stages.index(table.unit_stages[unit]) % len(STAGE_COLOURS)]


def _unit_ticks(axis: Axes, names: list[str]) -> None:
    step = max(1, len(names) // 45)
    axis.set_xticks(range(0, len(names), step), names[::step], rotation=90, fontsize=7)


def _tidy(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_axisbelow(True)
    axis.grid(alpha=0.3, axis="y")


def draw_distribution(tables: Mapping[str, RouteTable], path: str | Path) -> Path:
    """How many images had how much executed, a panel a table (CDB, Fig. 5; SkipNet, Fig. 2.11)."""
    figure = Figure(figsize=(7, 0.8 + 2.2 * len(tables)))
    percents = {name: executed_percent(table) for name, table in tables.items()}
    low, high = span(np.concatenate(list(percents.values())))
    axes = figure.subplots(len(tables), 1, sharex=True, squeeze=False)[:, 0]
    for k, (axis, (name, percent)) in enumerate(zip(axes, percents.items(), strict=True)):
        share = np.full(len(percent), 100 / len(percent))
        axis.hist(percent, bins=np.linspace(low, high, 41), weights=share, color=STAGE_COLOURS[k % 6])
        mean = percent.mean()
        axis.axvline(mean, color="black", linewidth=1.2, linestyle="--")
        side = "right" if mean > (low + high) / 2 else "left"
        axis.annotate(
            f"{name}{': ' if name else ''}mean {mean:.1f} %, {count_text(tables[name].executed.mean())} multiply-adds",
            (mean, 0.97), (-5 if side == "right" else 5, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha=side, va="top", fontsize=8,
        )  # fmt: skip
        axis.set(ylabel="% of images", xlim=(low, high))
        axis.margins(y=0.2)
        _tidy(axis)
    axes[0].set_title("How much of the network runs for an image")
    axes[-1].set_xlabel("executed multiply-adds (% of the network without gates)")
    return save_figure(figure, path)


def count_text(count: float) -> str:
    """A number of multiply-adds with three digits, in thousands, millions or billions (k, M, G)."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return f"{count:.3g}"


def span(percent: np.ndarray) -> tuple[float, float]:
    """Range of an axis that shows all of ``percent``, at least ten points wide, in steps of five; it ends at 100 where
    nothing is more, which only gates can make it."""
    low, high = 5 * np.floor(percent.min() / 5), 5 * np.ceil(percent.max() / 5)
    if high - low < 10:
        low, high = low - 5, high + 5
    if percent.max() <= 100 < high:
        low, high = min(low, 90.0), 100.0
    return max(float(low), 0.0), float(high)


def _chosen_classes(table: RouteTable) -> tuple[list[str], np.ndarray]:
    """Names and indices of the classes to draw, the ones with least executed first; evenly spread if there are many."""
    members = groups(table)
    if list(members) == [ALL_IMAGES]:
        raise ValueError("the images have no labels")
    percent = executed_percent(table)
    order = np.argsort([percent[chosen].mean() for chosen in members.values()], kind="stable")
    if len(order) > MOST_CLASSES:
        order = order[np.linspace(0, len(order) - 1, MOST_CLASSES).astype(int)]
    names = list(members)
    return [names[i] for i in order], order


def draw_class_rates(table: RouteTable, path: str | Path) -> Path:
    """Execution rates of blocks or groups by class as a heat map, easy classes on top (CDB, Fig. 6).

    Raises:
        ValueError: the images have no labels.
    """
    names, order = _chosen_classes(table)
    titles, values = columns(table)
    rates = 100 * class_rates(table, values)[order]
    figure = Figure(figsize=(min(max(6, 0.26 * len(titles) + 2.2), 18), max(2.6, 0.24 * len(names) + 1.6)))
    axis = figure.subplots()
    image = axis.imshow(rates, aspect="auto", cmap=RATES, vmin=0, vmax=100, interpolation="nearest")
    axis.set_yticks(range(len(names)), names, fontsize=7)
    _unit_ticks(axis, titles)
    axis.set_title("Execution rate per class, least executed class on top")
    figure.colorbar(image, ax=axis, label="executed (% of images)", fraction=0.03, pad=0.02)
    return save_figure(figure, path)


def draw_classes(table: RouteTable, path: str | Path) -> Path:
    """Executed multiply-adds of the images of each class, with the class' accuracy beside (SkipNet, Fig. 2.13).

    Raises:
        ValueError: the images have no labels.
    """
    names, order = _chosen_classes(table)
    members, percent, correct = list(groups(table).values()), executed_percent(table), table.correct
    figure = Figure(figsize=(8, max(2.6, 0.3 * len(names) + 1.2)))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
    places = np.arange(len(names))
    # matplotlib 3.10 calls "vert" by another name and later drops it.
    lying = {"orientation": "horizontal"} if matplotlib.__version_info__ >= (3, 10) else {"vert": False}
    boxes = left.boxplot(
        [percent[members[i]] for i in order], positions=places, widths=0.6, patch_artist=True, **lying,
        flierprops={"markersize": 2, "alpha": 0.4}, medianprops={"color": "black"},
    )  # fmt: skip
    for box in boxes["boxes"]:
        box.set(facecolor="#a8c6e8", edgecolor="#4477aa")
    left.set_yticks(places, names, fontsize=8)
    left.invert_yaxis()
    left.set(xlabel="executed (% of the network without gates)", title="How much runs for each class")
    if correct is None:
        right.set_visible(False)
    else:
        right.barh(places, [100 * correct[members[i]].mean() for i in order], height=0.6, color="#88bb88")
        right.set(xlabel="accuracy (%)", xlim=(0, 100))
        _tidy(right)
    _tidy(left)
    return save_figure(figure, path)


def draw_elements(table: RouteTable, path: str | Path) -> Path:
    """Of the groups or channels of each unit: which share always runs, never runs, or depends on the image.

    Raises:
        ValueError: the units are blocks.
    """
    if not len(table.unit_sizes) or table.unit_sizes.max() == 1:
        raise ValueError("the units are whole blocks")
    shares = 100 * use_of_elements(table)
    count = len(shares)
    figure = Figure(figsize=(min(max(5, 0.34 * count + 1.5), 16), 3.8))
    axis = figure.subplots()
    bottom = np.zeros(count)
    for k, (label, colour) in enumerate((("always", "#4477aa"), ("depends on the image", "#ccaa22"),
                                         ("never", "#dddddd"))):  # fmt: skip
        axis.bar(range(count), shares[:, k], bottom=bottom, width=0.85, label=label, color=colour)
        bottom += shares[:, k]
    axis.set(ylim=(0, 100), xlim=(-0.7, count - 0.3), ylabel="% of groups or channels")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8)
    _unit_ticks(axis, [str(name) for name in table.unit_names])
    _tidy(axis)
    return save_figure(figure, path)


def draw_similarity(table: RouteTable, path: str | Path) -> Path:
    """Which classes take similar routes: the correlation of their execution rates.

    This is what DeepMoE's Fig. 3.4 shows by another way: embeddings of related classes can take each other's place.

    Raises:
        ValueError: the images have no labels.
    """
    names, order = _chosen_classes(table)
    similarity = class_similarity(table)[np.ix_(order, order)]
    size = max(4.0, 0.26 * len(names) + 2)
    figure = Figure(figsize=(size + 0.8, size))
    axis = figure.subplots()
    image = axis.imshow(similarity, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.set_title("Which classes take similar routes")
    figure.colorbar(image, ax=axis, label="correlation of execution rates", fraction=0.04, pad=0.02)
    return save_figure(figure, path)


def draw_extremes(table: RouteTable, path: str | Path, count: int = 6) -> Path:
    """For each class the images with least and with most executed; wrong answers have a red frame (SkipNet, Fig. 2.12).

    Raises:
        ValueError: the images cannot be had.
    """
    chosen = extremes(table, count)
    if len(chosen) > 20:
        names = list(chosen)
        chosen = {names[i]: chosen[names[i]] for i in np.linspace(0, len(names) - 1, 20).astype(int)}
    wanted = [int(i) for sides in chosen.values() for side in sides for i in side]
    images, problem = load_images(table, wanted)
    if not images:
        raise ValueError(problem)
    percent, correct = executed_percent(table), table.correct
    figure = Figure(figsize=(0.85 * (2 * count + 1.6), 1.02 * len(chosen) + 0.5))
    grid = figure.add_gridspec(
        len(chosen), 2 * count + 1, width_ratios=[*[1] * count, 0.25, *[1] * count], wspace=0.06, hspace=0.32,
        left=0.11, right=0.995, bottom=0.01, top=1 - 0.5 / (1.02 * len(chosen) + 0.5),
    )  # fmt: skip
    for row, (name, (easy, hard)) in enumerate(chosen.items()):
        for place, index in [*enumerate(easy), *enumerate(hard, count + 1)]:
            axis = figure.add_subplot(grid[row, place])
            axis.set(xticks=[], yticks=[])
            if index in images:
                axis.imshow(images[index], interpolation="nearest")
            axis.set_title(f"{percent[index]:.0f} %", fontsize=7, pad=2)
            wrong = correct is not None and not correct[index]
            axis.spines[:].set(color="#cc3311" if wrong else "#bbbbbb", linewidth=2 if wrong else 0.6)
            if place == 0:
                axis.set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center", labelpad=6)
    for x, text in ((0.11 + 0.89 * 0.25, "least executed"), (0.11 + 0.89 * 0.75, "most executed")):
        figure.text(x, 1 - 0.12 / (1.02 * len(chosen) + 0.5), text, ha="center", va="top", fontsize=10)
    return save_figure(figure, path)
