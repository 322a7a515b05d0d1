"""How fast a training adapts: an evaluated metric against iterations, and the time that it took (as in the
comparison of learning speeds by Kang et al., ICCV 2019)."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dyn_d2.utils.own_files import is_number

Curve = dict[int, float]  # iteration -> value in percent


def read_curve(folder: str | Path, metric: str = "nAP50") -> Curve:
    """The values of a metric that a run with TEST.EVAL_PERIOD has logged.

    Args:
        folder: OUTPUT_DIR of the run.
        metric: of boxes, such as "nAP50" or "AP-seven".

    Raises:
        FileNotFoundError: the folder has no metrics.json.
        ValueError: the run did not evaluate this metric; names those that it did.
    """
    rows = _read_rows(folder)
    # The evaluation after the last step is logged under the number of a step that never came.
    steps = max((row["iteration"] + 1 for row in rows if "total_loss" in row), default=math.inf)
    curve: Curve = {}
    for row in rows:
        value = row.get(f"bbox/{metric}")
        if value is not None and not math.isnan(value):
            curve[min(row["iteration"] + 1, steps)] = value
    if not curve:
        known = sorted({key.removeprefix("bbox/") for row in rows for key in row if key.startswith("bbox/")})
        raise ValueError(
            f"{folder}/metrics.json has no {metric} of boxes (there: {', '.join(known) or 'none'}): train with "
            "TEST.EVAL_PERIOD."
        )
    return curve


def training_seconds(folder: str | Path) -> float:
    """Seconds of all training steps of a run, with the reading of their data and without evaluations and the start of
    the process: the sum, over the rows of its log, of the median step of the row times the steps since the one before.

    Args:
        folder: OUTPUT_DIR of the run.

    Raises:
        FileNotFoundError: the folder has no metrics.json.
    """
    total, done = 0.0, 0
    for row in _read_rows(folder):
        if "time" in row:
            total, done = total + row["time"] * (row["iteration"] + 1 - done), row["iteration"] + 1
    return total


def _read_rows(folder: str | Path) -> list[dict[str, Any]]:
    path = Path(folder) / "metrics.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {folder} is no OUTPUT_DIR of a training.")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            numbers = all(value is None or is_number(value) for value in row.values())
            whole = numbers and isinstance(row["iteration"], int) and math.isfinite(row.get("time", 0.0))
        except (AttributeError, TypeError, ValueError, KeyError, RecursionError):
            whole = False
        if not whole:
            raise ValueError(
                f"{path}, line {number}, is no row of a log: where a kill has cut it off, `dyn-d2 train ... --resume` "
                "corrects the file."
            )
        rows.append(row)
    return rows


def draw_convergence(curves: Mapping[str, Mapping[str, Curve]], normalise: bool = True) -> Figure:
    """A colour a metric, a line style a run.

    Args:
        curves: run -> metric -> curve.
        normalise: divide each metric by its largest value over all runs, as Kang et al. do.
    """
    metrics = list(dict.fromkeys(metric for of_run in curves.values() for metric in of_run))
    largest = {m: max((max(run[m].values()) for run in curves.values() if m in run), default=0.0) for m in metrics}
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    for style, (name, of_run) in zip(("-", "--", ":", "-."), curves.items(), strict=False):
        for metric, curve in of_run.items():
            scale = 1 / largest[metric] if normalise and largest[metric] > 0 else 1
            heights = [value * scale for _, value in sorted(curve.items())]
            colour = f"C{metrics.index(metric)}"
            axis.plot(sorted(curve), heights, style, color=colour, marker=".", label=f"{name}, {metric}")
    axis.set(xlabel="iterations", ylabel="share of the largest value" if normalise else "%")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure
