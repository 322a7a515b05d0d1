"""Every file of data ends right: refused by a message that names it, or read as a slow, obvious reading says.

DYN_D2_FUZZ=400 runs so many cases of each kind in place of a few; ``fuzz_data.py`` runs any seeds, each of which may
hang."""

import os

import pytest
from fuzz_data import KINDS, judge
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from outcomes import RIGHT

CASES = int(os.environ.get("DYN_D2_FUZZ", "10"))


@pytest.mark.embedded  # an installed Detectron2 reads files in its own way
@pytest.mark.timeout(60 + CASES)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_case_ends_right(kind) -> None:
    @settings(max_examples=CASES, derandomize=True, deadline=None, phases=[Phase.generate], database=None)
    @given(st.integers(0, 2**32))
    def check(seed: int) -> None:
        outcome, text = judge(kind, seed)
        assert outcome == RIGHT, f"{kind} {seed}: {text}"

    check()
