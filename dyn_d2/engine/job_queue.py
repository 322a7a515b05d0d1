"""Many trainings of which some start from others: each is run once, several at a time, and none that is done."""

import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from .stages import Stage

if TYPE_CHECKING:
    from .workers import Training, Workers

logger = logging.getLogger(__name__)

Cell = TypeVar("Cell")  # what a benchmark calls one of its final models
LOOK = 60.0  # seconds after which is looked whether there is still a machine that can train


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
        StageError: a folder holds the result of another config, or results that were taken with other keys.
    """
    levels = []
    for position in range(max(len(stages) for stages in plans.values())):
        level: dict[Path, tuple[Stage, Cell]] = {}
        for cell, stages in plans.items():
            if position < len(stages) and stages[position].folder not in level and not stages[position].finished():
                level[stages[position].folder] = (stages[position], cell)
        levels.append(list(level.values()))
    trained = {stage.folder for level in levels for stage, _ in level}
    for stages in plans.values():
        if stages[-1].folder not in trained:
            stages[-1].require_same_results()
    return [level for level in levels if level]


def run_pending(
    plans: Mapping[Cell, Sequence[Stage]],
    training_of: Callable[[Stage, Cell], "Training"],
    workers: "Callable[[], Workers]",
    on_start: Callable[[Stage], None] | None = None,
) -> None:
    """Do each training of ``plans`` that is not done, as soon as those that it starts from are.

    Args:
        plans: the stages of each cell, in order; those with the same folder are the same.
        training_of: what a worker is told to train a stage; the cell is one of those that need it.
        workers: opened only if there is something to do.
        on_start: called before each training; by default a line of the log counts them. Each that ends has a line
            with the time that the rest will take.

    Raises:
        StageError: a training failed. Others that run are waited for, none is started, and what is finished stays
            finished. An interruption ends them at once.
    """
    todo = {stage.folder: (stage, cell) for level in pending(plans) for stage, cell in level}
    logger.info(f"{len(plans)} cells: {len(todo)} trainings to do" if todo else f"all {len(plans)} cells are done")
    if not todo:
        return
    progress = _Progress([stage for stage, _ in todo.values()])
    on_start = on_start or progress.start
    order: TopologicalSorter[Path] = TopologicalSorter()
    for folder, (stage, _) in todo.items():
        order.add(folder, *(parent.folder for parent in stage.parents if parent.folder in todo))
    order.prepare()
    ready: deque[Path] = deque()
    running: dict[Future[float], Stage] = {}
    with workers() as pool:
        try:
            while order.is_active():
                ready += order.get_ready()
                while ready and len(running) < max(1, pool.at_a_time + pool.ahead):
                    stage, cell = todo[ready[0]]
                    on_start(stage)
                    future = pool.submit(training_of(stage, cell), min(pool.at_a_time, len(ready) + len(running)))
                    running[future] = stage
                    ready.popleft()
                for future in _next_done(running, pool):
                    stage = running.pop(future)
                    progress.finish(stage, pool.collect(stage, future), pool.at_a_time)
                    order.done(stage.folder)
        except Exception:
            if running:
                logger.warning(f"a training failed; waiting for {len(running)} that run already")
            raise
        except BaseException:
            pool.stop()
            raise


def _next_done(running: Mapping[Future[float], Stage], pool: "Workers") -> set[Future[float]]:
    """Wait for trainings that end."""
    while not (done := wait(running, LOOK, FIRST_COMPLETED).done):
        if not pool.at_a_time:
            logger.warning(
                "no machine is left that has what a training needs: waiting for one. Ctrl-C ends this, and the same "
                "command goes on later"
            )
    return done


class _Progress:
    """One line for each training that starts, and one for each that ends: its number, the time passed, and what the
    rest will take, as soon as a training of each kind that is left has been seen."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._total, self._started, self._begin = len(stages), 0, time.monotonic()
        self._left = Counter(map(_depth, stages))
        self._seconds: dict[int, list[float]] = defaultdict(list)

    def start(self, stage: Stage) -> None:
        self._started += 1
        logger.info(f"training {self._started} of {self._total}: {stage.folder.name}")

    def finish(self, stage: Stage, seconds: float, at_a_time: int) -> None:
        self._left[_depth(stage)] -= 1
        self._seconds[_depth(stage)].append(seconds)
        left, passed = sum(self._left.values()), (time.monotonic() - self._begin) / 60
        logger.info(
            f"{self._total - left} of {self._total} trainings done: {stage.folder.name} in {seconds:.0f} s "
            f"({passed:.1f} min passed{self._rest(at_a_time)})"
        )

    def _rest(self, at_a_time: int) -> str:
        left = {kind: count for kind, count in self._left.items() if count}
        if not left or not all(self._seconds[kind] for kind in left):
            return ""
        seconds = sum(count * sum(self._seconds[kind]) / len(self._seconds[kind]) for kind, count in left.items())
        return f", about {seconds / max(1, min(at_a_time, sum(left.values()))) / 60:.1f} min left"


def _depth(stage: Stage) -> int:
    """How many trainings come before: those of one depth take about as long."""
    return 1 + max(map(_depth, stage.parents), default=0)
