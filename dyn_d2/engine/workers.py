"""Where the trainings of a table run: in processes of this machine, or on a cluster (see cluster.py).

A worker is a process that does one training after the other, since a process of its own for each would spend more time
on importing torch than a fine-tuning from cached features takes.
"""

import argparse
import multiprocessing
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import torch

import dyn_d2
from dyn_d2.utils.errors import UserError
from dyn_d2.utils.lock import wait_until_free

from detectron2.config import CfgNode

from .job_queue import quiet
from .launch import ProcessLost, processes
from .stages import Plan, Stage, StageError, run_stage
from .training import train_in_this_process

GOES_ON = "The same command goes on from here."


@dataclass(frozen=True)
class Training:
    """One stage of a procedure, as another process can be told to train it.

    Attributes:
        plan: a function of a module, or a ``functools.partial`` of one; ``plan(config_file, opts)`` has the stage.
        folder: of the stage.
        launcher: options of ``dyn-d2 train`` such as ``--num-gpus 2``.
        cwd: what relative names of files start from, on every machine.
    """

    plan: Plan
    config_file: str
    opts: tuple[str, ...]
    folder: Path
    launcher: tuple[str, ...] = ()
    cwd: str = field(default_factory=os.getcwd)


def run_cell(training: Training, threads: int | None = None, patience: float = 0.0) -> float:
    """Do a training in this process, unless it is done; go on where it was killed.

    Args:
        threads: of torch; None for those that the process has.
        patience: seconds to wait until what other machines have written is seen here, and until a killed process has
            left the folder.

    Returns:
        The seconds that it took.

    Raises:
        StageError: it failed; the message names its log.
        ProcessLost: one of its several processes was killed: it may be tried again.
    """
    begin = time.monotonic()
    if not os.path.isdir(training.cwd):
        raise StageError(
            f"there is no folder {training.cwd} on {os.uname().nodename}: start the command in a folder of a storage "
            "that all machines share."
        )
    os.chdir(training.cwd)
    dyn_d2.register()
    if threads:
        torch.set_num_threads(threads)
    try:
        with quiet():
            stages = training.plan(training.config_file, list(training.opts))
        (stage,) = (stage for stage in stages if stage.folder == training.folder)
        for parent in stage.parents:
            wait_for_result(parent, patience)
        wait_until_free(stage.folder, patience)
        run_stage(stage, training.config_file, list(training.opts), training.launcher, train_in_this_process)
    except (StageError, ProcessLost):
        raise
    except UserError as error:
        raise StageError(f"{training.folder.name} failed: {error} (log: {training.folder}/log.txt) {GOES_ON}") from None
    return time.monotonic() - begin


def wait_for_result(stage: Stage, patience: float) -> None:
    """Return when this machine sees the result of ``stage``, which another may have written a moment ago.

    Raises:
        StageError: it is not there after ``patience`` seconds, or it is that of another config.
    """
    deadline = time.monotonic() + patience
    while not stage.finished():
        if time.monotonic() >= deadline:
            raise StageError(
                f"{stage.folder} on {os.uname().nodename} lacks the result of a training that another process has "
                "finished: OUTPUT_DIR has to be on a storage that all machines share."
            )
        time.sleep(1.0)


class Workers(ABC):
    """An executor of trainings, as ``concurrent.futures`` has them."""

    run = staticmethod(run_cell)  # what does a training, in another process
    patience = 0.0  # see ``run_cell``

    @property
    @abstractmethod
    def at_a_time(self) -> int:
        """How many trainings can run now."""

    @property
    def ahead(self) -> int:
        """How many may wait beside those that run."""
        return 0

    @abstractmethod
    def submit(self, training: Training, beside: int) -> "Future[float]":
        """Start a training; its future gives the seconds it took.

        Args:
            beside: how many run at the same time, this one included.
        """

    @abstractmethod
    def result(self, future: "Future[float]") -> float:
        """That of a future that is done.

        Raises:
            StageError: the training failed.
        """

    def collect(self, stage: Stage, future: "Future[float]") -> float:
        """The seconds that the training of ``stage`` took.

        Raises:
            StageError: it failed, or this machine does not see its result.
        """
        seconds = self.result(future)
        wait_for_result(stage, self.patience)
        return seconds

    @abstractmethod
    def stop(self) -> None:
        """End what runs, now: a checkpoint is what is left of it."""

    def __enter__(self) -> "Workers":
        return self

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what runs, and end the workers."""


class ThisProcess(Workers):
    """No worker at all, for trainings that take less time than the start of a process.

    Args:
        run: does a training.
    """

    def __init__(self, run: Callable[[Training], object]) -> None:
        self._run = run

    @property
    def at_a_time(self) -> int:
        return 1

    def submit(self, training: Training, beside: int) -> "Future[float]":
        future: Future[float] = Future()
        begin = time.monotonic()
        self._run(training)
        future.set_result(time.monotonic() - begin)
        return future

    def result(self, future: "Future[float]") -> float:
        return future.result()

    def stop(self) -> None:
        """Whatever ends the training has ended it."""

    def __exit__(self, *_: object) -> None:
        """Nothing runs."""


class LocalWorkers(Workers):
    """Processes of this machine, which share its cores evenly unless the user has set OMP_NUM_THREADS."""

    def __init__(self, jobs: int = 1) -> None:
        self._jobs = jobs
        self._others = set(multiprocessing.active_children())
        self._pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin)

    @property
    def at_a_time(self) -> int:
        return self._jobs

    def submit(self, training: Training, beside: int) -> "Future[float]":
        threads = None if "OMP_NUM_THREADS" in os.environ else max(1, _cores() // beside)
        with _told_if_killed():
            return self._pool.submit(self.run, training, threads)

    def result(self, future: "Future[float]") -> float:
        with _told_if_killed():
            return future.result()

    def stop(self) -> None:
        for child in set(multiprocessing.active_children()) - self._others:
            child.terminate()

    def __exit__(self, *_: object) -> None:
        try:
            self._pool.shutdown(cancel_futures=True)
        except BaseException:  # Ctrl-C while waiting: workers do not listen to it, and the end of Python waits for them
            self.stop()
            raise


@contextmanager
def _told_if_killed() -> Iterator[None]:
    """
    Raises:
        StageError: a process of the pool is gone.
    """
    try:
        yield
    except BrokenProcessPool as error:
        raise StageError(
            "a process that trained was killed, often for lack of memory: lower --jobs or the batch. " + GOES_ON
        ) from error


def _begin() -> None:
    """In each worker: whoever started it decides on its end, and it does not outlive them."""
    signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN, which processes of the training would inherit
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -------------------------------------------------------------------------------------------------------- command line


def positive(text: str) -> int:
    """An integer above 0, of a command line.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} has to be a number of at least 1")
    return int(text)


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--jobs``, ``--num-gpus``, ``--cluster`` and ``--cores`` of a command that runs many trainings."""
    parser.add_argument("--jobs", type=positive, help="trainings at a time on this machine (default: 1)")
    parser.add_argument("--num-gpus", type=processes, default=1, help="GPUs of each training")
    parser.add_argument("--cluster", metavar="local|auto|ADDRESS", help="run on Ray: a cluster of this machine alone, "
                        "the one that this machine is part of, or HOST:PORT")  # fmt: skip
    parser.add_argument("--cores", type=positive, help="cores of each training on a cluster (default: 1)")


def workers_of(args: argparse.Namespace, cfg: CfgNode) -> Callable[[], Workers]:
    """What makes the workers that the options of ``add_options`` ask for.

    Args:
        cfg: MODEL.DEVICE says whether trainings need GPUs.

    Raises:
        ValueError: options that do not go together.
    """
    if not args.cluster:
        if args.cores:
            raise ValueError("--cores is for --cluster; on one machine the trainings of --jobs share the cores.")
        return lambda: LocalWorkers(args.jobs or 1)
    if args.jobs:
        raise ValueError("--jobs is for one machine without --cluster: on a cluster --cores and --num-gpus, what a "
                         "training takes, decide how many run at a time.")  # fmt: skip
    from .cluster import RayWorkers

    gpus = args.num_gpus if cfg.MODEL.DEVICE.startswith("cuda") else 0
    return lambda: RayWorkers(args.cluster, args.cores or 1, gpus)
