"""Some of what ``hostile_values.py`` tries: seeded, without processes of their own."""

import pytest
import torch
from hostile_values import HOSTILE, LOADED, keys_of, names_the_key, outcome, with_value
from hypothesis import given, settings
from hypothesis import strategies as st

from dyn_d2.config.ranges import default_values

# Which values of these are refused depends on the memory of the machine, or they take their time.
_HEAVY = ("NUM_WORKERS", "IMS_PER_BATCH", "PROCESS_TIMEOUT", "DEVICE")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(default_values())), st.sampled_from(HOSTILE))
def test_any_value_is_read_or_refused_by_name(tmp_path_factory, key, value) -> None:
    folder = tmp_path_factory.getbasetemp()
    try:
        with_value(LOADED, folder, key, value)
    except (ValueError, KeyError, FileNotFoundError) as error:
        assert names_the_key(str(error), key)


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("keys")
    found = {task: keys_of(task, folder) for task in ("classifier", "retinanet")}
    return {task: [k for k in names if not k.endswith(_HEAVY)] for task, names in found.items()}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_what_is_read_is_trained_or_refused_by_name(keys, tmp_path_factory, data) -> None:
    task = data.draw(st.sampled_from(sorted(keys)))
    key, value = data.draw(st.sampled_from(keys[task])), data.draw(st.sampled_from(HOSTILE))
    torch.manual_seed(0)
    assert outcome(task, tmp_path_factory.getbasetemp(), key, value) in ("read", "built", "trains")
