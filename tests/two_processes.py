"""A function in two processes that talk over gloo."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp

import dyn_d2  # noqa: F401  chooses the backend, before the function's module is imported


def results_of_two(function: Callable[..., Any], folder: Path, *args: Any) -> list:
    """What ``function(rank, *args)`` returns in process 0 and in process 1.

    Args:
        function: of a module, since the processes have to find it; so have its arguments and results to be picklable.
        folder: an existing one, where the processes meet.
    """
    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_process, (function, str(folder / "rendezvous"), queue, args), nprocs=2)
    found = dict(queue.get() for _ in range(2))
    return [found[0], found[1]]


def _process(rank: int, function: Callable[..., Any], rendezvous: str, queue: Any, args: tuple) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    queue.put((rank, function(rank, *args)))
    # A thread of gloo that still holds the tensors of the last collective when Python ends would abort the process.
    dist.barrier()
    dist.destroy_process_group()
