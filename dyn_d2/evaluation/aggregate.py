"""Means over seeds, with confidence intervals, from the records of single runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit
from tabulate import tabulate

from dyn_d2.utils.atomic import atomic_write

from .results import versions, write_results

# Name of a 95 % confidence interval -> the formula of its half width. "normal" is that of the multi-seed tables of Wang
# et al. (ICML 2020), whose n is 10 to 30; of few values it is too narrow: 1.96 where Student's t has 2.78 for five.
INTERVALS = {"t": "t(0.975, n - 1) s / sqrt(n)", "normal": "1.96 s / sqrt(n)"}


@dataclass(frozen=True)
class Estimate:
    """Mean of ``count`` values and the half width of its 95 % confidence interval (NaN for one value)."""

    mean: float
    half_width: float
    count: int

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "-"
        return f"{self.mean:.1f}" if math.isnan(self.half_width) else f"{self.mean:.1f} ± {self.half_width:.1f}"

    def as_json(self) -> dict[str, float]:
        """As a record has it."""
        return {"mean": self.mean, "half_width_95": self.half_width, "seeds": self.count}


@dataclass(frozen=True)
class Difference(Estimate):
    """Mean of differences, with its sign."""

    def __str__(self) -> str:
        return super().__str__() if math.isnan(self.mean) or self.mean < 0 else f"+{super().__str__()}"


def half_width(values: Sequence[float], interval: str = "t") -> float:
    """Half width of the 95 % confidence interval of the mean of n values: a factor times s / sqrt(n), with s the sample
    standard deviation (n - 1 in the denominator). NaN for one value.

    Args:
        interval: "t": Student's t with n - 1 degrees of freedom; "normal": 1.96.

    Raises:
        ValueError: no such interval.
    """
    if interval not in INTERVALS:
        raise ValueError(f"unknown interval {interval!r}: use {' or '.join(INTERVALS)}.")
    count = len(values)
    if count < 2:
        return math.nan
    factor = float(stdtrit(count - 1, 0.975)) if interval == "t" else 1.96
    return factor * float(np.std(values, ddof=1)) / math.sqrt(count)


def estimate(values: Sequence[float], interval: str = "t") -> Estimate:
    """Mean and 95 % confidence interval (``half_width``); NaN if a value is."""
    if not values:
        raise ValueError("There is nothing to average.")
    return Estimate(float(np.mean(values)), half_width(values, interval), len(values))


def cumulative(values: Sequence[float], interval: str = "t") -> list[Estimate]:
    """Estimates of the first 1, 2 ... n values (Figure 7.3 of Wang, X., PhD thesis, UC Berkeley, 2020)."""
    return [estimate(values[:count], interval) for count in range(1, len(values) + 1)]


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float], interval: str = "t"
) -> tuple[Difference, dict[int, float]]:
    """Mean and interval of ``first`` minus ``second`` over the seeds that both have, and the difference of each seed.

    What both owe to the same sample of shots is not in it, so that the interval is narrower than those of the two.

    Args:
        first, second: seed -> value.

    Raises:
        ValueError: they have no seed in common.
    """
    single = {seed: value - second[seed] for seed, value in first.items() if seed in second}
    if not single:
        raise ValueError(f"no seed in common: {sorted(first)} and {sorted(second)}.")
    values = list(single.values())
    return Difference(float(np.mean(values)), half_width(values, interval), len(values)), single


def headline(record: Mapping[str, Any], task: str = "bbox") -> dict[str, float]:
    """The metrics of ``task`` of the first test set, per-class values left out, null as NaN.

    Raises:
        ValueError: the record has no such task.
    """
    sets = list(record["metrics"].values())
    if not sets or task not in sets[0]:
        raise ValueError(f"The record holds no {task!r} results, only {sorted(sets[0]) if sets else 'nothing'}.")
    return {k: math.nan if v is None else float(v) for k, v in sets[0][task].items() if "-" not in k}


def aggregate(
    results: Mapping[tuple, Mapping[int, Mapping[str, float]]], seeds: Sequence[int], interval: str = "t"
) -> dict[tuple, dict[str, Estimate]]:
    """Estimates of each metric of each cell over ``seeds``.

    Args:
        results: cell -> seed -> metric -> value.
        interval: see ``half_width``.

    Raises:
        ValueError: a cell lacks one of the seeds; it names them, for a mean over other seeds is another number.
            Or no seed is given.
    """
    if not seeds:
        raise ValueError("There is no seed to average over.")
    missing = {cell: [s for s in seeds if s not in by_seed] for cell, by_seed in results.items()}
    missing = {cell: absent for cell, absent in missing.items() if absent}
    if missing:
        words = "; ".join(f"{'/'.join(map(str, cell))}: {absent}" for cell, absent in missing.items())
        raise ValueError(f"Seeds are missing, nothing is averaged: {words}.")
    return {
        cell: {
            metric: estimate([by_seed[s][metric] for s in seeds], interval)
            for metric in by_seed[seeds[0]]
            if all(metric in by_seed[s] for s in seeds)
        }
        for cell, by_seed in results.items()
    }


def table(
    rows: Sequence[tuple[Sequence[str], Mapping[str, Estimate | str]]], heads: Sequence[str], metrics: Sequence[str]
) -> str:
    """A markdown table: the names of each row, then its metrics. One that a row lacks is "not predicted" where others
    have it, as of classes that a model does not know, and "not measured" where none has it."""
    measured = {metric for _, values in rows for metric in values}
    absent = {metric: "not predicted" if metric in measured else "not measured" for metric in metrics}
    body = [[*names, *(str(values.get(metric, absent[metric])) for metric in metrics)] for names, values in rows]
    return tabulate(body, headers=[*heads, *metrics], tablefmt="pipe", disable_numparse=True)


def write_benchmark(folder: Path, record: Mapping[str, Any], caption: str, text: str) -> None:
    """Write benchmark.json, ``record`` with the formula of intervals (Student's t where it has none) and all versions,
    and benchmark.md, the table ``text`` under its caption."""
    write_results(folder / "benchmark.json", {"interval": INTERVALS["t"], **record, "versions": versions()})
    with atomic_write(folder / "benchmark.md") as file:
        file.write(f"{caption}\n\n{text}\n")
