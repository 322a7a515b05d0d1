"""Randomness by name."""

import random

import numpy as np
import torch

from dyn_d2.utils.seeds import derive_seed, seed_all


def test_seeds_are_stable_and_distinct():
    assert derive_seed("shots", 0) == derive_seed("shots", 0) == derive_seed("shots", "0")
    seeds = {derive_seed(name, i) for name in ("a", "b") for i in range(500)}
    assert len(seeds) == 1000 and all(0 <= seed < 2**63 for seed in seeds)


def test_seed_all_reaches_every_generator():
    def draw():
        seed_all(3, "rank", 1)
        return random.random(), np.random.rand(), torch.rand(1).item()

    first = draw()
    random.random(), np.random.rand(), torch.rand(1)
    assert draw() == first
