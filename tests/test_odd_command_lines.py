"""Some of what ``odd_command_lines.py`` tries, seeded."""

import random
import sys

import pytest
import torch
from odd_command_lines import World, draw, outcome


@pytest.mark.timeout(120)
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_wrong_arguments_end_in_one_message(tmp_path) -> None:
    torch.set_num_threads(1)
    world, rng = World(tmp_path), random.Random(0)
    for _ in range(20):
        name, words = draw(world, rng.randrange(2**31))
        assert outcome(world, name, words) in ("refused", "done"), (name, words)
