"""Accuracy against executed multiply-adds of trained networks, read from their results.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dyn_d2.evaluation.results import main_metric, read_results

from .tradeoff import executed_gflops


@dataclass(frozen=True)
class CostPoint:
    """One evaluated training: its main metric, and the mean multiply-adds of an image in 1e9."""

    folder: str
    metric: str
    value: float
    gflops: float


def read_cost(folder: str | Path) -> CostPoint:
    """From the record of an evaluation; of several test sets the first one counts.

    Raises:
        FileNotFoundError, ValueError: no such record, or it tells no accuracy or no routes.
    """
    results: Mapping[str, Any] = next(iter(read_results(folder)["metrics"].values()), {})
    if "GFLOPs" not in results.get("routes", {}):
        raise ValueError(f"{folder} tells no multiply-adds: its network is no gated one, nothing was recorded.")
    metric = main_metric(results)
    return CostPoint(Path(folder).name, metric["name"], metric["value"], executed_gflops(results["routes"]))


def draw_cost_curves(lines: Mapping[str, Sequence[CostPoint]]) -> Figure:
    """A line for each name, through its points from the cheapest on.

    Raises:
        ValueError: the points are judged by different metrics.
    """
    metrics = sorted({point.metric for points in lines.values() for point in points})
    if len(metrics) > 1:
        raise ValueError(f"the trainings are judged by {' and '.join(metrics)}, which do not fit in one picture.")
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    for (name, points), marker in zip(lines.items(), "osD^vP*X" * len(lines), strict=False):
        axis.plot([1000 * p.gflops for p in points], [p.value for p in points], marker=marker, label=name)
    axis.set(xlabel="executed multiply-adds of an image (M)", ylabel=metrics[0])
    axis.set_xlim(left=0)
    axis.margins(0.08)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, loc="best")
    return figure
