"""Many trainings of which some start from others: each is run once, several at a time, and none that is done."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from .stages import Stage

logger = logging.getLogger(__name__)

Cell = TypeVar("Cell")  # what a benchmark calls one of its final models


def numbers(text: str) -> list[int]:
    """ "0-2,5" -> [0, 1, 2, 5].

    Raises:
        ValueError: not such a list, or a range that runs backwards.
    """
    found: dict[int, None] = {}
    for part in text.split(","):
        first, _, last = part.partition("-")
        several = range(int(first), int(last or first) + 1)
        if not several:
            raise ValueError(f"{part} is an empty range.")
        found |= dict.fromkeys(several)
    return list(found)


@contextmanager
def quiet() -> Iterator[None]:
    """Only errors are logged: each stage says what it derives when it trains; while planning it would be pages."""
    package = logging.getLogger("dyn_d2")
    level = package.level
    package.setLevel(logging.ERROR)
    try:
        yield
    finally:
        package.setLevel(level)


def pending(plans: Mapping[Cell, Sequence[Stage]]) -> list[list[tuple[Stage, Cell]]]:
    """What is not trained yet, each folder once: first all base models, then what starts from them, and so on.

    Raises:
        StageError: a folder holds the result of another config.
    """
    levels = []
    for position in range(max(len(stages) for stages in plans.values())):
        level: dict[Path, tuple[Stage, Cell]] = {}
        for cell, stages in plans.items():
            if position < len(stages) and stages[position].folder not in level and not stages[position].finished():
                level[stages[position].folder] = (stages[position], cell)
        levels.append(list(level.values()))
    return [level for level in levels if level]


def run_pending(
    plans: Mapping[Cell, Sequence[Stage]],
    run: Callable[[Stage, Cell], None],
    jobs: int = 1,
    on_start: Callable[[Stage], None] | None = None,
) -> None:
    """Call ``run`` for each training of ``plans`` that is not done.

    Args:
        plans: the stages of each cell, in order; those with the same folder are the same.
        run: trains a stage; the cell is one of those that need it.
        jobs: trainings at a time.
        on_start: called before each training; by default a line of the log counts them and estimates the time.

    Raises:
        StageError: a training failed; what is finished stays finished.
    """
    levels = pending(plans)
    total = sum(len(level) for level in levels)
    logger.info(f"{len(plans)} cells: {total} trainings to do" if total else f"all {len(plans)} cells are done")
    progress = _Progress(total)
    on_start = on_start or progress.start
    stopped = threading.Event()

    def run_one(stage: Stage, cell: Cell) -> None:
        if stopped.is_set():
            return
        try:
            on_start(stage)
            run(stage, cell)
            progress.finished += 1
        except BaseException:
            stopped.set()  # by the thread itself: nothing else may start before the others hear of it
            raise

    for level in levels:
        at_a_time = min(jobs, len(level))
        with _threads_for(at_a_time), ThreadPoolExecutor(at_a_time) as pool:
            runs = [pool.submit(run_one, *item) for item in level]
            try:
                for future in runs:
                    future.result()
            except BaseException:  # an interruption reaches this thread only
                stopped.set()
                raise


class _Progress:
    """One line for each training that starts: its number, the time passed, and what the rest will take."""

    def __init__(self, total: int) -> None:
        self.finished = 0
        self._total, self._started, self._begin = total, 0, time.monotonic()

    def start(self, stage: Stage) -> None:
        minutes = (time.monotonic() - self._begin) / 60
        self._started += 1
        rest = ""
        if self.finished:
            rest = f", about {minutes / self.finished * (self._total - self.finished):.0f} min left"
        logger.info(f"training {self._started} of {self._total}: {stage.folder.name} ({minutes:.1f} min passed{rest})")


@contextmanager
def _threads_for(jobs: int) -> Iterator[None]:
    """Child processes share the cores evenly unless the user has set OMP_NUM_THREADS."""
    if "OMP_NUM_THREADS" in os.environ or jobs == 1:
        yield
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ["OMP_NUM_THREADS"] = str(max(1, cores // jobs))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
