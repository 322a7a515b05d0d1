"""Many cells (method, split, shots, seed) of the few-shot procedure, in parallel, each finished one only once."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

from tqdm import tqdm

from dyn_d2.evaluation.aggregate import headline
from dyn_d2.evaluation.results import read_results

from .few_shot import Stage, plan, run_stage
from .setup import METHODS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One fine-tuned model. ``method`` is a value of FEW_SHOT.METHOD."""

    method: str
    split: int
    shots: int
    seed: int

    def opts(self) -> list[str]:
        """The cell as KEY VALUE pairs."""
        keys = {"METHOD": self.method, "SPLIT": self.split, "SHOTS": self.shots, "SEED": self.seed}
        return [part for key, value in keys.items() for part in (f"FEW_SHOT.{key}", str(value))]


def cells(methods: Sequence[str], splits: Sequence[int], shots: Sequence[int], seeds: Sequence[int]) -> list[Cell]:
    """All combinations; seeds vary slowest, so that every row of the table has its first number early.

    Raises:
        ValueError: an unknown method.
    """
    unknown = sorted(set(methods) - METHODS.keys())
    if unknown:
        raise ValueError(f"unknown method {', '.join(unknown)}: use {', '.join(METHODS)}.")
    return [Cell(m, s, k, seed) for seed, s, m, k in product(seeds, splits, methods, shots)]


@contextmanager
def _threads_for(jobs: int) -> Iterator[None]:
    """Child processes share the cores evenly unless the user has set OMP_NUM_THREADS."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


def run_cells(
    config_file: str, opts: Iterable[str], wanted: Sequence[Cell], jobs: int = 1, launcher: Iterable[str] = ()
) -> dict[Cell, dict[str, Any]]:
    """Train what is not trained yet, stage by stage so that shared base models come first.

    Args:
        config_file, opts: as for train_net.py.
        jobs: training processes at a time.

    Returns:
        cell -> metrics of its fine-tuned model.

    Raises:
        StageError: a training failed; what is finished stays finished.
    """
    opts, launcher = list(opts), list(launcher)
    plans = {cell: plan(config_file, [*opts, *cell.opts()]) for cell in wanted}
    for position in range(max(len(stages) for stages in plans.values())):
        # Cells share stages: run each folder once.
        todo: dict[str, tuple[Stage, list[str]]] = {}
        for cell, stages in plans.items():
            if position < len(stages) and not stages[position].finished():
                todo.setdefault(str(stages[position].folder), (stages[position], [*opts, *cell.opts()]))
        if todo:
            _run_all(config_file, list(todo.values()), min(jobs, len(todo)), launcher)
    return {cell: headline(read_results(stages[-1].folder)) for cell, stages in plans.items()}


def base_results(config_file: str, opts: Iterable[str], split: int) -> dict[str, float]:
    """Metrics of the base model of ``split`` on its own classes; it has to be trained already."""
    base = plan(config_file, [*opts, "FEW_SHOT.SPLIT", str(split)])[0]
    return headline(read_results(base.folder))


def _run_all(config_file: str, todo: list[tuple[Stage, list[str]]], jobs: int, launcher: list[str]) -> None:
    name = todo[0][0].name
    with _threads_for(jobs), ThreadPoolExecutor(jobs) as pool, tqdm(total=len(todo), desc=name, unit="run") as bar:

        def run(stage: Stage, own_opts: list[str]) -> None:
            run_stage(stage, config_file, own_opts, launcher)
            bar.update()

        runs = [pool.submit(run, *item) for item in todo]
        try:
            for future in runs:
                future.result()
        except BaseException:
            for future in runs:
                future.cancel()
            raise
