"""IDK cascades as pictures: the models (Fig. 4.2), what cascades give for what they cost (Figs. 4.3, 4.4), and where
uncertainty lies (Fig. 4.5)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dyn_d2.evaluation.figures import save_figure

from .measures import measure
from .outcome import Outcome, oracle
from .table import PredictionTable


def draw_curves(
    curves: Mapping[str, Sequence[Outcome]],
    table: PredictionTable,
    path: str | Path,
    chosen: Mapping[str, Outcome] | None = None,
    label: str = "accuracy (%)",
) -> Path:
    """Accuracy against relative cost: a line a method, the models alone as squares, the oracle as a star.

    Args:
        curves: method -> outcomes; all of ``table``'s images.
        chosen: method -> the calibrated IDK cascade, drawn as a ring.
        label: of the vertical axis.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    for number, (name, outcomes) in enumerate(curves.items()):
        ordered = sorted(outcomes, key=lambda outcome: outcome.cost)
        places = [outcome.relative_cost for outcome in ordered], [100 * outcome.accuracy for outcome in ordered]
        axis.plot(*places, "o-" if len(ordered) == 1 else "-", color=f"C{number}", label=name, linewidth=1.4)
        if chosen and name in chosen:
            axis.plot(
                chosen[name].relative_cost, 100 * chosen[name].accuracy, "o", markersize=9, markerfacecolor="none",
                color=f"C{number}", markeredgewidth=1.8,
            )  # fmt: skip
    relative = table.costs / table.costs[-1]
    axis.plot(relative, 100 * table.accuracies, "ks", markersize=6, label="one model")
    for name, cost, accuracy in zip(table.names, relative, table.accuracies, strict=True):
        axis.annotate(name, (cost, 100 * accuracy), (5, -11), textcoords="offset points", fontsize=8)
    best = oracle(table)
    axis.plot(best.relative_cost, 100 * best.accuracy, "*", color="#bb9900", markersize=13, label="oracle")
    axis.set(xlabel="cost of an image, as a share of the last model's", ylabel=label)
    axis.margins(0.08)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, loc="lower right")
    return save_figure(figure, path)


def draw_uncertainty(tables: Mapping[str, PredictionTable], name: str, path: str | Path) -> Path:
    """How the measure ``name`` of each model but the last is distributed over images, right and wrong ones apart, a row
    for each set of images: a model that is surer of held-out images than of test images would show here.

    Args:
        tables: what to call the images -> the table.
    """
    models = len(next(iter(tables.values())).names) - 1
    figure = Figure(figsize=(4.6 * models, 2.6 * len(tables)), layout="constrained")
    axes = figure.subplots(len(tables), models, squeeze=False, sharex="col")
    for row, (title, table) in zip(axes, tables.items(), strict=True):
        for axis, outputs, losses, model in zip(row, table.outputs, table.losses, table.names, strict=False):
            values, wrong = measure(name, outputs), losses > 0.5
            bins = np.linspace(values.min(), max(values.max(), values.min() + 1e-9), 40)
            axis.hist([values[~wrong], values[wrong]], bins, stacked=True, color=["#4477aa", "#cc3311"],
                      label=["right", "wrong"])  # fmt: skip
            axis.set_yscale("symlog", linthresh=10)
            axis.set_title(f"{model}, {title}: mean {values.mean():.3f}", fontsize=9)
            axis.set_ylabel("images")
    for axis in axes[-1]:
        axis.set_xlabel(name.replace("_", " "))
    axes[0, 0].legend(fontsize=8)
    return save_figure(figure, path)


def draw_entropies(tables: Mapping[str, PredictionTable], name: str, path: str | Path) -> Path:
    """Fig. 4.5: how the measure ``name`` of each model is distributed over the images of each set, as shares of the
    set. A model that has learned its training images by heart is far surer of them than of held-out ones.

    Args:
        tables: what to call the images -> the table; all of the same models.
    """
    first = next(iter(tables.values()))
    figure = Figure(figsize=(4.0 * len(first.names), 3.0), layout="constrained")
    axes = figure.subplots(1, len(first.names), squeeze=False)[0]
    for number, (axis, model) in enumerate(zip(axes, first.names, strict=True)):
        values = {title: measure(name, table.outputs[number]) for title, table in tables.items()}
        least, most = min(v.min() for v in values.values()), max(v.max() for v in values.values())
        bins = np.linspace(least, max(most, least + 1e-9), 30)
        for place, (title, own) in enumerate(values.items()):
            share = np.full(len(own), 1 / len(own))
            label = f"{title}: mean {own.mean():.3f}"
            axis.hist(own, bins, weights=share, color=f"C{place}", alpha=0.45, label=label)
        axis.set(title=model, xlabel=name.replace("_", " "), ylabel="share of the images", yscale="log")
        axis.legend(fontsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path)


def right_by_many(losses: np.ndarray) -> np.ndarray:
    """(N + 1,) share of the images that exactly 0, 1, ..., N models answer rightly.

    Args:
        losses: (N, n) of zeros and ones.
    """
    right = (losses < 0.5).sum(0)
    return np.bincount(right, minlength=len(losses) + 1) / max(losses.shape[1], 1)


def draw_model_statistics(table: PredictionTable, throughput: Mapping[str, Sequence[float]], path: str | Path) -> Path:
    """Fig. 4.2: multiply-adds, accuracy and throughput of the models, and how many images at least k of them answer
    rightly.

    Args:
        throughput: batch size -> images a second of each model; may be empty.
    """
    figure = Figure(figsize=(13.0, 3.0), layout="constrained")
    cost, accuracy, speed, many = figure.subplots(1, 4)
    places = np.arange(len(table.names))
    cost.bar(places, table.costs / 1e9, color="#4477aa")
    cost.set(ylabel="multiply-adds (1e9)", title="(a)")
    accuracy.bar(places, 100 * table.accuracies, color="#4477aa")
    accuracy.set(ylabel="accuracy (%)", title="(b)")
    for number, (batch, own) in enumerate(throughput.items()):
        width = 0.8 / len(throughput)
        speed.bar(places + (number - (len(throughput) - 1) / 2) * width, own, width, label=f"batch {batch}")
    speed.set(ylabel="images a second" if throughput else "not measured", title="(c)")
    if throughput:
        speed.legend(fontsize=8)
    for axis in (cost, accuracy, speed):
        axis.set_xticks(places, table.names, rotation=20, fontsize=7)
    at_least = right_by_many(table.losses)[::-1].cumsum()[::-1][1:]
    many.bar(np.arange(1, len(at_least) + 1), 100 * at_least, color="#4477aa")
    many.set(ylabel="images (%)", xlabel="right under at least so many models", title="(d)")
    many.set_xticks(np.arange(1, len(at_least) + 1))
    for axis in (cost, accuracy, speed, many):
        axis.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path)


def draw_time(points: Sequence[tuple[str, float, float]], path: str | Path, label: str) -> Path:
    """What was reached against milliseconds an image, both measured.

    Args:
        points: (name, milliseconds, metric); those of single models are named, IDK cascades have a name that begins
            with "IDK cascade" and are joined by a line.
        label: of the metric.
    """
    figure = Figure(figsize=(6.0, 4.2), layout="constrained")
    axis = figure.subplots()
    cascades = sorted((ms, value, name) for name, ms, value in points if name.startswith("IDK cascade"))
    axis.plot([ms for ms, *_ in cascades], [value for _, value, _ in cascades], "o-", color="C0", label="IDK cascade")
    for name, ms, value in points:
        if not name.startswith("IDK cascade"):
            axis.plot(ms, value, "ks", markersize=6)
            axis.annotate(name, (ms, value), (5, -11), textcoords="offset points", fontsize=8)
    axis.set(xlabel="milliseconds per image", ylabel=label)
    axis.set_xlim(left=0)
    axis.margins(y=0.1)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, loc="lower right")
    return save_figure(figure, path)
