"""Communication between the processes of a distributed run; each function also works in a single process."""

import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

_local_group: dist.ProcessGroup | None = None


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes on all machines."""
    return dist.get_world_size() if _distributed() else 1


def get_rank() -> int:
    """Number of this process among all."""
    return dist.get_rank() if _distributed() else 0


def is_main_process() -> bool:
    """Whether this is process 0, the one that writes files and speaks to the console."""
    return get_rank() == 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Make the group of the processes on this machine. All processes have to call it, once, as ``launch()`` does.

    Args:
        num_workers_per_machine: usually the number of GPUs of one machine.

    Raises:
        ValueError: the number of processes is no multiple of it.
    """
    global _local_group
    world_size = get_world_size()
    if world_size % num_workers_per_machine:
        raise ValueError(f"{world_size} processes cannot be split into machines of {num_workers_per_machine}.")
    mine = get_rank() // num_workers_per_machine
    # Every process has to create every group, also those that it is not in.
    for machine in range(world_size // num_workers_per_machine):
        first = machine * num_workers_per_machine
        group = dist.new_group(list(range(first, first + num_workers_per_machine)))
        if machine == mine:
            _local_group = group


def get_local_process_group() -> dist.ProcessGroup:
    """The group of the processes on this machine.

    Raises:
        RuntimeError: ``create_local_process_group`` was not called.
    """
    if _local_group is None:
        raise RuntimeError(
            "There is no local process group: start the processes with detectron2.engine.launch, or call "
            "comm.create_local_process_group(num_workers_per_machine) after torch.distributed.init_process_group."
        )
    return _local_group


def get_local_rank() -> int:
    """Number of this process among those of its machine."""
    return dist.get_rank(group=get_local_process_group()) if _distributed() else 0


def get_local_size() -> int:
    """Number of processes on this machine."""
    return dist.get_world_size(group=get_local_process_group()) if _distributed() else 1


def synchronize() -> None:
    """Wait until all processes are here."""
    if get_world_size() == 1:
        return
    # Without device_ids NCCL has to guess the GPU, and warns.
    nccl = dist.get_backend() == dist.Backend.NCCL
    dist.barrier(device_ids=[torch.cuda.current_device()] if nccl else None)


@functools.lru_cache(maxsize=1)
def _gloo_group_beside(world: Any) -> Any:
    return dist.new_group(backend="gloo")


def _object_group(group: Any) -> Any:
    """Objects go over gloo, through host memory.

    The group that is made beside NCCL's is cached per world, so that a second run in this process gets its own. A world
    of gloo is not kept here: after destroy_process_group its threads have to end, or they abort Python as it ends.
    """
    if group is not None:
        return group
    world = dist.group.WORLD
    return _gloo_group_beside(world) if dist.get_backend() == dist.Backend.NCCL else world


def all_gather(data: Any, group: Any = None) -> list:
    """Give ``data`` (anything that can be pickled) of each process, in order of rank, to all of ``group``."""
    if get_world_size() == 1:
        return [data]
    group = _object_group(group)
    result = [None] * dist.get_world_size(group)
    dist.all_gather_object(result, data, group=group)
    return result


def gather(data: Any, dst: int = 0, group: Any = None) -> list:
    """Like ``all_gather``, but only process ``dst`` gets the list; all others get an empty one."""
    if get_world_size() == 1:
        return [data]
    group = _object_group(group)
    result = [None] * dist.get_world_size(group) if dist.get_rank() == dst else None
    dist.gather_object(data, result, dst=dst, group=group)
    return result if result is not None else []


def shared_random_seed() -> int:
    """A number in [0, 2**31) from numpy's generator of process 0, the same in all processes. All have to call it."""
    return all_gather(int(np.random.randint(2**31)))[0]


@torch.no_grad()
def reduce_dict(input_dict: dict[str, torch.Tensor], average: bool = True) -> dict[str, torch.Tensor]:
    """Sum (or average) scalar tensors of all processes, key by key. Only process 0 gets the result.

    Args:
        input_dict: the same keys in each process; tensors of shape () on the backend's device.
        average: divide by the number of processes.
    """
    world_size = get_world_size()
    if world_size == 1:
        return input_dict
    names = sorted(input_dict)
    values = torch.stack([input_dict[name] for name in names])
    dist.reduce(values, dst=0)
    if average and is_main_process():
        values /= world_size
    return dict(zip(names, values, strict=True))
