"""Some of what ``kills.py`` tries: killed trainings and chains go on to the numbers of those that were not."""

import random
import sys

import pytest
import torch
from kills import Subject, fill, kill, kill_loader

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.skipif(sys.platform == "win32", reason="forks")]


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> Subject:
    torch.set_num_threads(1)
    return Subject(tmp_path_factory.mktemp("training"), of_stages=False)


def test_killed_at_any_moment(training) -> None:
    rng = random.Random(5)
    assert [kill(training, rng) for _ in range(2)] == ["", ""]


def test_a_full_disk(training) -> None:
    assert fill(training, 150_000) == ""


def test_a_killed_loader(training) -> None:
    assert kill_loader(training, 8) == ""


def test_a_chain_that_is_killed(tmp_path) -> None:
    assert kill(Subject(tmp_path, of_stages=True), random.Random(3)) == ""
