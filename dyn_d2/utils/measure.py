"""What benchmarks share: the machine that numbers belong to, and the time and memory that a computation takes."""

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

Key = TypeVar("Key")


def describe_machine(device: str, dtype: torch.dtype) -> dict:
    """What the numbers depend on."""
    on_gpu = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"{platform.processor() or platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "dtype": str(dtype).removeprefix("torch."),
        "torch": str(torch.__version__),
    }


def synchronise(device: str) -> None:
    """Waits until a GPU has done what it was told; nothing on the CPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def time_call(compute: Callable[[], object], device: str) -> float:
    """Seconds of one call of ``compute``, begun and ended when a GPU has nothing left to do."""
    synchronise(device)
    start = time.perf_counter()
    compute()
    synchronise(device)
    return time.perf_counter() - start


def turns(keys: Sequence[Key], rounds: int, warm_up: int) -> Iterator[tuple[int, Key, bool]]:
    """Who runs when, so that a slow minute of the machine hits all: in each round everybody once, in alternating order.

    Yields:
        number of the round, who runs, and whether it counts; the first ``warm_up`` rounds do not.
    """
    for number in range(warm_up + rounds):
        for key in keys if number % 2 == 0 else keys[::-1]:
            yield number, key, number >= warm_up


def realised(time_ratio: float, flops_ratio: float) -> float | None:
    """The share of the saved multiply-adds that was saved on the clock; None where there is nothing to save."""
    return (1 - time_ratio) / (1 - flops_ratio) if flops_ratio < 1 else None


def peak_memory(compute: Callable[[], object], device: str) -> float:
    """The most memory that the tensors which ``compute`` makes take at once, in MB."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        compute()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        compute()
    taken = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            taken += event.nbytes()
            peak = max(peak, taken)
    return peak / 2**20
