"""Some of what ``hostile_files.py`` tries, seeded, through everything that loads a checkpoint."""

import random

import pytest
import torch
from hostile_files import World, draw, outcome
from hypothesis import given, settings
from hypothesis import strategies as st

from dyn_d2.checkpoint import CheckpointError, read_checkpoint


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("hostile"))


@pytest.mark.slow
@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_any_file_is_refused_by_name_or_is_what_was_saved(world, seed) -> None:
    case = draw(world, seed)
    found = outcome(world, case)
    assert set(found.values()) == {"right"}, (case.kind, case.place, found)


_PARTS = {
    "table": 5, "names": {"classes": "red"}, "a name": {"classes": ["red", 5]}, "config": {"config": {"SEED": 3}},
    "stage": {"stage": 5}, "few_shot": {"few_shot": [1]}, "versions": {"versions": "2"}, "policy": {"policy": "x"},
    "inputs": {"inputs": {"data": 5}},
    "fingerprint": {"inputs": {"data": {"boxes": {"json": 5}}}}, "weights": {"inputs": {"weights": ["a"]}},
}  # fmt: skip


@pytest.mark.parametrize("part", _PARTS)
def test_an_entry_of_ours_that_was_edited(tmp_path, part) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": {"w": torch.ones(1)}, "dyn_d2": _PARTS[part]}, path)
    with pytest.raises(CheckpointError, match='a.pth: its entry "dyn_d2", which says'):
        read_checkpoint(str(path))


def test_cases_are_drawn_by_their_number(world) -> None:
    seed = random.Random(0).randrange(10**6)
    assert draw(world, seed).place == draw(world, seed).place
