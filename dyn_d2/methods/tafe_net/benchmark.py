"""A table about described classes: methods, splits and seeds, with intervals of Student's t."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dyn_d2.evaluation.aggregate import Estimate, estimate, table, write_benchmark

from detectron2.data import MetadataCatalog

from .choice import Choice
from .data import described_set
from .eszsl import ESZSL
from .evaluator import METRICS, calibrated
from .trainings import BALANCED, CLOSED, TITLES, Planner, Scores, Split, scores_of
from .trainings import ESZSL as ESZSL_PLAIN

# Kind of data set -> the columns of its table; the first is what methods are compared by.
COLUMNS = {
    "zero_shot": ("H", "T1", "u", "s"),
    "unseen_pairs": ("top1", "top2", "top3", "per_class_top1", "retrieval_mAP"),
    "low_shot": ("top5-novel", "top5-all", "top5-base", "top1-novel", "top1-all", "top1-base"),
}
MEAN = "mean of splits"
CAPTION = (
    "Percent. Of one split: mean over the seeds ± 95 % interval of Student's t. Mean of splits: of the means of the "
    "splits, with the interval over the splits. Gain: of the first column over ESZSL, paired by split and seed."
)


@dataclass(frozen=True)
class Cell:
    """A row's method, split and seed."""

    method: str
    split: str
    seed: int


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        gain: of the main metric over ESZSL; None where there is none.
    """

    method: str
    split: str
    metrics: dict[str, Estimate]
    gain: Estimate | None


def kind_of(planner: Planner, splits: Sequence[Split]) -> str:
    """How the test sets of all splits are evaluated.

    Raises:
        ValueError: not alike.
    """
    kinds = {str(MetadataCatalog.get(planner.cfg(split).DATASETS.TEST[0]).evaluator_type) for split in splits}
    if len(kinds) > 1:
        raise ValueError(f"the splits are evaluated in different ways ({', '.join(sorted(kinds))}): a table for each.")
    return kinds.pop()


def eszsl_scores(planner: Planner, split: Split, method: str, regularisers: tuple[float, float]) -> Scores:
    """ESZSL on the training part of a split."""
    data = described_set(planner.cfg(split).DATASETS.TRAIN[0])
    return Scores(ESZSL(data, method == BALANCED).scores(data.parts["test"].features, *regularisers), data)


def measure(kind: str, scores: Scores, penalty: float = 0.0) -> dict[str, float]:
    """The metrics of a kind of data set."""
    values = calibrated(scores.values, scores.data.seen, penalty)
    return METRICS[kind](values, scores.labels, scores.data, [])


def measure_all(
    kind: str,
    planner: Planner,
    methods: Sequence[str],
    splits: Sequence[Split],
    seeds: Sequence[int],
    choices: Mapping[tuple[str, str], Choice],
) -> dict[Cell, dict[str, float]]:
    """Metrics of each cell, whose models have to be trained."""
    found: dict[Cell, dict[str, float]] = {}
    for split in splits:
        for method in methods:
            choice = choices[method, split.name]
            if choice.regularisers is not None:  # the same whatever the seed
                own = measure(kind, eszsl_scores(planner, split, method, choice.regularisers), choice.penalty)
                found |= {Cell(method, split.name, seed): own for seed in seeds}
                continue
            for seed in seeds:
                scores = scores_of(planner.stage(method, split, seed, choice.keys))
                found[Cell(method, split.name, seed)] = measure(kind, scores, choice.penalty)
    return found


def rows(found: Mapping[Cell, Mapping[str, float]], columns: Sequence[str]) -> list[Row]:
    """A row for each split and method, and for each method the mean of several splits."""
    methods = list(dict.fromkeys(cell.method for cell in found))
    splits = list(dict.fromkeys(cell.split for cell in found))
    seeds = list(dict.fromkeys(cell.seed for cell in found))

    def values(method: str, split: str, metric: str) -> list[float]:
        own = [found[Cell(method, split, seed)][metric] for seed in seeds]
        return own[:1] if method in CLOSED else own  # it draws nothing

    def gains(method: str, split: str) -> list[float]:
        main = columns[0]
        return [found[Cell(method, split, seed)][main] - found[Cell(ESZSL_PLAIN, split, seed)][main] for seed in seeds]

    compared = [method for method in methods if method not in CLOSED] if ESZSL_PLAIN in methods else []
    made = []
    for split in splits:
        for method in methods:
            means = {name: estimate(values(method, split, name)) for name in columns}
            gain = estimate(gains(method, split)) if method in compared else None
            made.append(Row(method, split, means, gain))
    if len(splits) > 1:
        for method in methods:
            means = {
                name: estimate([float(np.mean(values(method, split, name))) for split in splits]) for name in columns
            }
            own = [float(np.mean(gains(method, split))) for split in splits] if method in compared else []
            made.append(Row(method, MEAN, means, estimate(own) if own else None))
    return made


def summarise(
    output: Path,
    kind: str,
    found: Mapping[Cell, Mapping[str, float]],
    splits: Sequence[Split],
    choices: Mapping[tuple[str, str], Choice],
    more: Mapping[str, Any] | None = None,
) -> str:
    """Write benchmark.json and benchmark.md; returns the table.

    Args:
        more: entries of the json.
    """
    columns = COLUMNS[kind]
    made = rows(found, columns)
    seeds = len({cell.seed for cell in found})
    text = table(
        [
            ((row.split, TITLES[row.method]), {**row.metrics, "gain": "-" if row.gain is None else str(row.gain)})
            for row in made
        ],
        ("split", "method"),
        [*columns, "gain"],
    )
    record = {
        "interval": "Student's t, 95 %",
        "seeds": seeds,
        "splits": {split.name: list(split.opts) for split in splits},
        "chosen_on_folds": {
            f"{split}/{method}": {
                "keys": list(choice.keys),
                "regularisers": choice.regularisers,
                "seen_penalty": choice.penalty,
                "metrics": choice.metrics,
                "tried": choice.tried,
            }
            for (method, split), choice in choices.items()
        },
        "rows": {
            f"{row.split}/{row.method}": {
                **{name: value.as_json() for name, value in row.metrics.items()},
                "gain": row.gain.as_json() if row.gain else None,
            }
            for row in made
        },
        "single": {f"{cell.split}/{cell.method}/seed{cell.seed}": dict(own) for cell, own in found.items()},
        **(more or {}),
    }
    write_benchmark(output, record, CAPTION, text)
    return text
