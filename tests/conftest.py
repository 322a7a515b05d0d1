"""Shared by all tests: which Detectron2 runs is chosen first, and every test starts from the same random state."""

import logging
import os
from collections.abc import Iterator

# Tests run in parallel processes; more threads than cores only slow them down.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
from semantic_sets import squares  # noqa: E402, F401  a fixture

import dyn_d2  # noqa: E402, F401  chooses the backend and registers everything
from dyn_d2.backend import describe_backend  # noqa: E402
from dyn_d2.ops import channel_conv  # noqa: E402
from dyn_d2.utils.seeds import seed_all  # noqa: E402


@pytest.fixture(autouse=True)
def _seeded() -> None:
    seed_all("tests")


@pytest.fixture(autouse=True)
def _log_reaches_caplog() -> Iterator[None]:
    """Commands set up the log for a process of their own, which takes it away from caplog."""
    yield
    for name in ("dyn_d2", "detectron2"):
        logging.getLogger(name).propagate = True


@pytest.fixture(params=["kernel", "torch"])
def channel_conv_paths(request, monkeypatch) -> None:
    """The test runs with the compiled kernel of channel_conv, where there is one, and without."""
    if request.param == "torch":
        monkeypatch.setattr(channel_conv, "load", lambda: False)
    elif not channel_conv.load():
        pytest.skip("no compiled kernel on this machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``embedded`` are skipped where an installed Detectron2 runs. The README's commands, one long test,
    begin first, so that they do not run alone at the end."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")
    if describe_backend().startswith("Detectron2: embedded"):
        return
    skip = pytest.mark.skip(reason="about the embedded Detectron2; an installed Detectron2 runs")
    for item in items:
        if item.get_closest_marker("embedded"):
            item.add_marker(skip)
