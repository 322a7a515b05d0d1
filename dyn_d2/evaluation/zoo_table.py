"""A table of models from the records of their evaluations: what was trained on what, and what it reached at what cost.

Runs whose folders and settings differ in nothing but the seed ("large_seed0", "seed0/large") are one row, with the mean
over the seeds and its interval. Folders in different places are different models, whatever their names.
"""

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from tabulate import tabulate

from dyn_d2.utils.errors import UserError

from .aggregate import estimate
from .results import MAIN_METRICS, RESULTS_FILE, VALIDATION, read_results

logger = logging.getLogger(__name__)

HEADERS = (
    "model", "command", "data", "metric", "seeds", "value", "GFLOPs", "ms", "iterations", "MB", "comes with dyn_d2",
)  # fmt: skip
SETTINGS = ("train_sets", "iterations", "batch", "learning_rate", "classifier", "freeze", "protocol")
_SHOTS_BEFORE = {"unit": "instance", "group_by_image": False, "max_objects": 0}  # of records that do not say it yet
_SECTIONS = ("about", "data", "commands", "measured")
_SEED = re.compile(r"[_-]?seed[_-]?\d+")


@dataclass
class Row:
    """One model.

    Attributes:
        name: of its folder below the one that was searched, without the seed.
        how: config and command, where somebody said.
        data: test set.
        metric: what ``values`` are: task and name.
        values: of each seed.
        gflops: executed multiply-adds of an image in 1e9, of each seed that has them.
        milliseconds: of one image at batch 1, of each seed that has them.
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
    milliseconds: list[float] = field(default_factory=list)

    def cells(self) -> tuple[str, ...]:
        """As ``HEADERS`` has them."""
        value = estimate(self.values)
        cost, time = (f"{fmean(own):.4g}" if own else "-" for own in (self.gflops, self.milliseconds))
        size = "-" if math.isnan(self.megabytes) else f"{self.megabytes:.1f}"
        how = f"`{self.how}`" if self.how else "-"
        counts = str(value.count), str(value), cost, time, str(self.iterations) if self.iterations else "-", size
        return (self.name, how, self.data, self.metric, *counts, self.shipped or "-")


def rows_of(
    paths: Sequence[str | Path], commands: Mapping[str, str] | None = None, metrics: Sequence[str] = ()
) -> list[Row]:
    """The rows of records: files, or folders that hold some at any depth.

    Args:
        commands: name of a model -> how it was trained.
        metrics: "TASK/NAME", a row each for the records that have them; none: what each record is judged by.

    Raises:
        UserError: there is no record of a training that has ended, one cannot be read, or none has such a metric.
    """
    rows: dict[tuple[Any, ...], Row] = {}
    for file, name in _files(paths).items():
        try:
            record = read_results(file)
        except ValueError as error:
            raise UserError(str(error)) from error
        weights = file.parent / "model_final.pth"
        done, of = record.get("iteration_evaluated"), int(record.get("iterations") or 0)
        if done is not None and done < of and not weights.is_file():
            logger.warning(f"{file} is left out: its training was at iteration {done} of {of} and has not ended.")
            continue
        few_shot = {key: value for key, value in (record.get("few_shot") or {}).items() if key != "seed"}
        if few_shot:
            few_shot = dict(sorted((_SHOTS_BEFORE | few_shot).items()))
        settings = [_SEED.sub("", str(record.get(setting))) for setting in SETTINGS] + [str(few_shot)]
        for data, tasks in record["metrics"].items():
            for task, metric, value in _values(tasks, metrics):
                key = (_without_seed(file.parent), data, task, metric, *settings)
                row = rows.setdefault(key, Row(name, data, f"{task} {metric}", of))
                row.values.append(value)
                if isinstance(cost := tasks.get("routes", {}).get("GFLOPs"), int | float):
                    row.gflops.append(float(cost))
                row.how = (commands or {}).get(name, "")
                row.megabytes = os.path.getsize(weights) / 1e6 if weights.is_file() else row.megabytes
    if not rows:
        what = f"of {', '.join(metrics)}" if metrics else "with a metric"
        raise UserError(f"no {RESULTS_FILE} {what} in {', '.join(map(str, paths))}.")
    return sorted(rows.values(), key=lambda row: (row.data, row.metric, row.name))


def _values(tasks: Mapping[str, Mapping[str, float]], metrics: Sequence[str]) -> list[tuple[str, str, float]]:
    """(task, name, value) of those ``metrics`` that were evaluated, or of the one that counts; undefined ones are left
    out."""
    if metrics:
        named = [(task, name) for task, _, name in (metric.partition("/") for metric in metrics)]
    else:
        named = [(task, name) for task, name in MAIN_METRICS.items() if name in tasks.get(task, {})][:1]
    found = [(task, name, tasks.get(task, {}).get(name)) for task, name in named]
    return [(task, name, float(value)) for task, name, value in found if value is not None]


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


@dataclass(frozen=True)
class Words:
    """What records do not say.

    Attributes:
        about: what the page covers, below its title.
        data: test set -> what it is called in the table.
        commands: name of a model -> how it was trained.
        measured: groups of models whose numbers stand in a json file, see ``zoo_measured``.
    """

    about: str = ""
    data: Mapping[str, str] = field(default_factory=dict)
    commands: Mapping[str, str] = field(default_factory=dict)
    measured: Sequence[Any] = ()


def read_words(path: str | Path) -> Words:
    """The yaml file of ``dyn-d2 zoo-table --commands``: the sections of :class:`Words`, or "commands" alone.

    Raises:
        FileNotFoundError: no such file.
        UserError: it is something else; names it.
    """
    content = yaml.safe_load(Path(path).read_text())
    if not isinstance(content, dict):
        raise UserError(f"{path} has to hold lines 'name: command', or the sections {', '.join(_SECTIONS)}.")
    if not any(isinstance(content.get(section), dict | list) for section in _SECTIONS):
        content = {"commands": content}
    data, commands = content.get("data") or {}, content.get("commands") or {}
    measured = content.get("measured") or []
    kinds = isinstance(data, dict) and isinstance(commands, dict) and isinstance(measured, list)
    if set(content) - set(_SECTIONS) or not kinds:
        raise UserError(f"{path} has the sections {', '.join(map(str, content))}: {', '.join(_SECTIONS)} are known.")
    data, commands = ({str(name): str(text) for name, text in section.items()} for section in (data, commands))
    return Words(" ".join(str(content.get("about") or "").split()), data, commands, measured)


def to_markdown(rows: Sequence[Row], about: str = "") -> str:
    """The page: what is in it, and the table."""
    table = tabulate([row.cells() for row in rows], headers=HEADERS, tablefmt="github", disable_numparse=True)
    return (
        "# Models\n\n"
        + (f"{about}\n\n" if about else "")
        + "Made by `dyn-d2 zoo-table` from the records of evaluations; do not edit.\n"
        "Values are percent, of several seeds the mean and the half width of its 95 % confidence interval.\n"
        "GFLOPs are 1e9 multiply-adds of the gated network that ran for an image, ms its time at batch 1, one thread.\n"
        "Models that come with dyn_d2 load by `dyn_d2.model_zoo.get(NAME)`.\n\n"
        f"{table}\n"
    )


def _files(paths: Sequence[str | Path]) -> dict[Path, str]:
    """Each record's file -> the name of its model: the folder below the one that was given, without its seed. What was
    evaluated to choose a checkpoint is no result."""
    found: dict[Path, str] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path} does not exist: give {RESULTS_FILE} files or folders that hold some.")
        files = sorted(path.rglob(RESULTS_FILE)) if path.is_dir() else [path]
        for file in files:
            folder = file.resolve().parent
            if folder.name != VALIDATION:
                below = folder.relative_to(path.resolve()) if path.is_dir() else Path()
                found.setdefault(file.resolve(), str(_without_seed(below if below.parts else Path(folder.name))))
    return found


def _without_seed(path: Path) -> Path:
    """A path without the seeds in its names: equal for the runs of one model, in one place."""
    parts = [_SEED.sub("", part) for part in path.parts]
    return Path(*(part for part in parts if part)) if any(parts) else path
