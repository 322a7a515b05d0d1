"""Randomness as a function of names: the same parts give the same numbers, whatever was drawn before."""

import hashlib
import random
from functools import cache

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any mix of numbers and names, stable over processes and versions."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_all(*parts: int | str) -> int:
    """Seed Python's, numpy's and torch's generators with ``derive_seed(*parts)`` and return that seed."""
    seed = derive_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if _has_accelerator():
        torch.manual_seed(seed)
    else:  # torch.manual_seed would note for each device that may come up later who called it, which takes milliseconds
        torch.default_generator.manual_seed(seed)
    return seed


@cache
def _has_accelerator() -> bool:
    if hasattr(torch, "accelerator"):  # since torch 2.6
        return torch.accelerator.is_available()
    return torch.cuda.is_available() or torch.backends.mps.is_available()
