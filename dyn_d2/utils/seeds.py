"""Randomness as a function of names: the same parts give the same numbers, whatever was drawn before."""

import hashlib
import random

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
    torch.manual_seed(seed)
    return seed
