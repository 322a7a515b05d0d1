"""A second and third chance for functions that run out of GPU memory."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


def _to_cpu(value: Any) -> Any:
    device = getattr(value, "device", None)
    return value.to(device="cpu") if getattr(device, "type", None) == "cuda" and hasattr(value, "to") else value


def retry_if_cuda_oom(func: Callable) -> Callable:
    """Wrap a stateless ``func`` so that it survives CUDA out-of-memory errors.

    It is tried as it is, once more after emptying CUDA's cache, and at last with its arguments moved to the CPU
    (arguments that have ``.device`` and ``.to``; nested ones are not looked into). In the last case the result is on
    the CPU as well.
    """

    @wraps(func)
    def wrapped(*args, **kwargs):
        for _ in range(2):
            try:
                return func(*args, **kwargs)
            except torch.cuda.OutOfMemoryError:
                pass
            # Outside of the except block: the traceback, which keeps func's tensors alive, is gone here.
            torch.cuda.empty_cache()
        logging.getLogger(__name__).info(f"CUDA is out of memory: {func} runs on the CPU.")
        return func(*map(_to_cpu, args), **{key: _to_cpu(value) for key, value in kwargs.items()})

    return wrapped
