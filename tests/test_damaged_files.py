"""Some of what ``damaged_files.py`` tries, seeded."""

import random

import pytest
from damaged_files import all_kinds, damage, outcome
from hypothesis import given, settings
from hypothesis import strategies as st


class Sound(list):
    """(kind, path, content) of each file as it should be."""

    def __repr__(self) -> str:  # hypothesis shows it
        return "sound files"


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Sound:
    found = Sound()
    for kind in all_kinds():
        path = tmp_path_factory.mktemp("damaged") / kind.name.replace("metrics_cut", "metrics")
        kind.write(path)
        found.append((kind, path, path.read_bytes()))
    return found


def test_sound_files_are_read(sound) -> None:
    assert all(outcome(kind, path, data) == "read" for kind, path, data in sound)


@pytest.mark.timeout(120)
@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_damaged_files_end_in_one_message_that_names_them(sound, seed) -> None:
    rng = random.Random(seed)
    kind, path, data = rng.choice(sound)
    damaged = damage(rng, kind, data)
    assert outcome(kind, path, damaged) in ("read", "refused"), damaged[:300]
