"""Starting one process per device on one or several machines."""

import logging
import socket
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detectron2.utils import comm

DEFAULT_TIMEOUT = timedelta(minutes=30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(
    main_func: Callable,
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Run ``main_func(*args)`` in ``num_gpus_per_machine`` processes here, joined into one process group.

    One process in all runs in place. Without CUDA the processes talk over gloo. When one process fails, the others
    are ended and its error is raised here.

    Args:
        dist_url: where the processes meet, "tcp://host:port" or "auto" (a free local port, one machine only).
        timeout: how long a collective may wait for the others.

    Raises:
        ValueError: more processes than GPUs, or "auto" with several machines.
    """
    world_size = num_machines * num_gpus_per_machine
    if world_size == 1:
        main_func(*args)
        return
    if torch.cuda.is_available() and num_gpus_per_machine > torch.cuda.device_count():
        raise ValueError(f"{num_gpus_per_machine} GPUs were asked for, this machine has {torch.cuda.device_count()}.")
    if dist_url in (None, "auto"):
        if num_machines > 1:
            raise ValueError("Several machines need a --dist-url such as tcp://FIRST_MACHINE:PORT.")
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    mp.start_processes(
        _worker,
        args=(main_func, args, num_gpus_per_machine, world_size, machine_rank, dist_url, timeout),
        nprocs=num_gpus_per_machine,
        daemon=False,
    )


def _worker(
    local_rank: int,
    main_func: Callable,
    args: tuple,
    num_local: int,
    world_size: int,
    machine_rank: int,
    dist_url: str,
    timeout: timedelta,
) -> None:
    with_cuda = torch.cuda.is_available()
    try:
        dist.init_process_group(
            "nccl" if with_cuda else "gloo",
            init_method=dist_url,
            rank=machine_rank * num_local + local_rank,
            world_size=world_size,
            timeout=timeout,
        )
    except Exception:
        logging.getLogger(__name__).error("Joining the process group at %s failed.", dist_url)
        raise
    comm.create_local_process_group(num_local)
    if with_cuda:
        torch.cuda.set_device(local_rank)
    comm.synchronize()
    main_func(*args)
    # Leave together: a process that exits early would break the others' last collective.
    comm.synchronize()
    dist.destroy_process_group()
