"""Shared by all tests: the engine is chosen first, and every test starts from the same random state."""

import os

# Tests run in parallel processes; more threads than cores only slow them down.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402

import dyn_d2  # noqa: E402, F401  chooses the engine and registers everything
from dyn_d2.utils.seeds import seed_all  # noqa: E402


@pytest.fixture(autouse=True)
def _seeded() -> None:
    seed_all("tests")
