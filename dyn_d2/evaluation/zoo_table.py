"""A table of models from the records of their evaluations: what was trained on what, and what it reached at what cost.

Runs that differ in nothing but seed and shots drawn are one row, with the mean over the seeds and its interval. No row
has a seed twice: runs that their records do not tell apart, but of the same seed, are rows of their own.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from dyn_d2.utils.errors import UserError

from .aggregate import estimate
from .results import RESULTS_FILE, main_metric, read_results

HEADERS = ("model", "command", "data", "metric", "seeds", "value", "GFLOPs", "iterations", "MB", "comes with dyn_d2")
SETTINGS = ("train_sets", "iterations", "batch", "learning_rate", "classifier", "freeze", "protocol")
_SEED = re.compile(r"[_-]?seed[_-]?\d+")


@dataclass
class Row:
    """One model.

    Attributes:
        name: of its folder, without the seed.
        how: config and command, where somebody said.
        data: test set.
        metric: what ``values`` are: task and name.
        values: of each seed.
        gflops: executed multiply-adds of an image in 1e9, of each seed that has them.
        iterations: of training.
        megabytes: of its checkpoint; NaN where that is not beside the record.
        shipped: its name in the model zoo; "" where it does not come with the package.
    """

    name: str
    data: str
    metric: str
    iterations: int
    how: str = ""
    shipped: str = ""
    megabytes: float = math.nan
    values: list[float] = field(default_factory=list)
    gflops: list[float] = field(default_factory=list)

    def cells(self) -> tuple[str, ...]:
        """As ``HEADERS`` has them."""
        value = estimate(self.values)
        cost = f"{sum(self.gflops) / len(self.gflops):.4g}" if self.gflops else "-"
        size = "-" if math.isnan(self.megabytes) else f"{self.megabytes:.1f}"
        how = f"`{self.how}`" if self.how else "-"
        counts = str(value.count), str(value), cost, str(self.iterations), size
        return (self.name, how, self.data, self.metric, *counts, self.shipped or "-")


def rows_of(
    paths: Sequence[str | Path], commands: Mapping[str, str] | None = None, metrics: Sequence[str] = ()
) -> list[Row]:
    """The rows of records: files, or folders that hold some at any depth.

    Args:
        commands: name of a model -> how it was trained.
        metrics: "TASK/NAME", a row each for the records that have them; none: what each record is judged by.

    Raises:
        UserError: there is no record, one cannot be read, or none has such a metric.
    """
    rows: dict[tuple[Any, ...], Row] = {}
    times: Counter[tuple[Any, ...]] = Counter()
    for file in _files(paths):
        try:
            record = read_results(file)
        except ValueError as error:
            raise UserError(str(error)) from error
        name = _name(file)
        few_shot = {key: value for key, value in (record.get("few_shot") or {}).items() if key != "seed"}
        settings = [_SEED.sub("", str(record.get(setting))) for setting in SETTINGS] + [str(few_shot)]
        named = _SEED.search(file.resolve().parent.name)
        seed = named[0] if named else str(file)
        for data, tasks in record["metrics"].items():
            for task, metric, value in _values(tasks, metrics):
                key = (name, data, task, metric, *settings)
                run = (*key, seed)
                row = rows.setdefault(
                    (*key, times[run]), Row(name, data, f"{task} {metric}", int(record.get("iterations") or 0))
                )
                times[run] += 1
                row.values.append(value)
                if isinstance(cost := tasks.get("routes", {}).get("GFLOPs"), int | float):
                    row.gflops.append(float(cost))
                row.how = (commands or {}).get(name, "")
                weights = file.parent / "model_final.pth"
                row.megabytes = os.path.getsize(weights) / 1e6 if weights.is_file() else row.megabytes
    if not rows:
        what = f"of {', '.join(metrics)}" if metrics else "with a metric"
        raise UserError(f"no {RESULTS_FILE} {what} in {', '.join(map(str, paths))}.")
    return sorted(rows.values(), key=lambda row: (row.data, row.metric, row.name))


def _values(tasks: Mapping[str, Mapping[str, float]], metrics: Sequence[str]) -> list[tuple[str, str, float]]:
    """(task, name, value) of those ``metrics`` that were evaluated, or of the one that counts."""
    if not metrics:
        try:
            metric = main_metric(tasks)
        except ValueError:  # a table of routes, or of something that no model is judged by
            return []
        return [(metric["task"], metric["name"], metric["value"])]
    found = [metric.partition("/") for metric in metrics]
    return [(task, name, float(tasks[task][name])) for task, _, name in found if name in tasks.get(task, {})]


def rows_of_cards(cards: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int]) -> list[Row]:
    """The rows of models that come with the package, from what their cards say.

    Args:
        cards: name -> "config", "command", "data", "metric", "values" of seeds, "GFLOPs", "iterations".
        sizes: name -> bytes.
    """
    return [
        Row(
            name,
            str(card.get("data", "-")),
            str(card.get("metric", "-")),
            int(card.get("iterations", 0)),
            str(card.get("command") or card.get("config") or ""),
            name,
            sizes[name] / 1e6,
            [float(value) for value in card.get("values", [math.nan])],
            [float(card["GFLOPs"])] if "GFLOPs" in card else [],
        )
        for name, card in cards.items()
    ]


def to_markdown(rows: Sequence[Row]) -> str:
    """The page: what is in it, and the table."""
    table = tabulate([row.cells() for row in rows], headers=HEADERS, tablefmt="github", disable_numparse=True)
    return (
        "# Models\n\n"
        "Made by `dyn-d2 zoo-table` from the records of evaluations; do not edit.\n"
        "Values are percent, of several seeds the mean and the half width of its 95 % confidence interval.\n"
        "GFLOPs are 1e9 multiply-adds of the gated network that ran for an image.\n"
        "Models that come with dyn_d2 load by `dyn_d2.model_zoo.get(NAME)`.\n\n"
        f"{table}\n"
    )


def _files(paths: Sequence[str | Path]) -> list[Path]:
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(path.rglob(RESULTS_FILE))
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{path} does not exist: give {RESULTS_FILE} files or folders that hold some.")
    return list(dict.fromkeys(found))


def _name(file: Path) -> str:
    """Of the folder that the record lies in, without its seed."""
    return _SEED.sub("", file.resolve().parent.name) or file.resolve().parent.name
