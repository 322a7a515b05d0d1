"""Means over seeds, with confidence intervals, from the records of single runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from dyn_d2.utils.atomic import atomic_write

from .results import versions, write_results


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


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 1.96 s / sqrt(n), with s the sample standard deviation (n - 1 in the denominator); NaN if a value is.

    The formula of the multi-seed tables of Wang et al. (ICML 2020), whose n is 10 to 30; for few it is optimistic.
    """
    if not values:
        raise ValueError("There is nothing to average.")
    half = 1.96 * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(float(np.mean(values)), half, len(values))


def student_estimate(values: Sequence[float]) -> Estimate:
    """Mean and the 95 % interval of Student's t with n - 1 degrees of freedom, right for few values as well."""
    plain = estimate(values)
    if len(values) < 2:
        return plain
    from scipy.stats import t  # half a second to import

    half = float(t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Estimate(plain.mean, half, len(values))


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
    results: Mapping[tuple, Mapping[int, Mapping[str, float]]], seeds: Sequence[int]
) -> dict[tuple, dict[str, Estimate]]:
    """Estimates of each metric of each cell over ``seeds``.

    Args:
        results: cell -> seed -> metric -> value.

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
            metric: estimate([by_seed[s][metric] for s in seeds])
            for metric in by_seed[seeds[0]]
            if all(metric in by_seed[s] for s in seeds)
        }
        for cell, by_seed in results.items()
    }


def table(
    rows: Sequence[tuple[Sequence[str], Mapping[str, Estimate | str]]], heads: Sequence[str], metrics: Sequence[str]
) -> str:
    """A markdown table: the names of each row, then its metrics; a metric that was not measured is "not predicted"."""
    body = [[*names, *(str(values[m]) if m in values else "not predicted" for m in metrics)] for names, values in rows]
    return tabulate(body, headers=[*heads, *metrics], tablefmt="pipe", disable_numparse=True)


def write_benchmark(folder: Path, record: Mapping[str, Any], caption: str, text: str) -> None:
    """Write benchmark.json, ``record`` with the formula of intervals and all versions, and benchmark.md, the table
    ``text`` under its caption."""
    write_results(folder / "benchmark.json", {"interval": "1.96 s / sqrt(n)", **record, "versions": versions()})
    with atomic_write(folder / "benchmark.md") as file:
        file.write(f"{caption}\n\n{text}\n")
