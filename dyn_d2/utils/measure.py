"""What benchmarks share: the machine that numbers belong to, and the time and memory that a computation takes."""

import os
import platform
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


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
