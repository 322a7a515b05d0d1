"""Files that are made to hang or to fill the memory are refused at once; what is declared has to be there."""

import collections
import io
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyn_d2.utils.restricted_pickle import load

PROTO = b"\x80\x02"
# A tuple of two that are the same tuple of two, sixty times: its hash would take 2^60 steps.
NESTED = b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60))
BYTES_1K = b"T" + (1000).to_bytes(4, "little") + b"x" * 1000

HOSTILE = {
    "key of nested tuples": (PROTO + b"}" + NESTED + b"K\x01s.", "a key of type tuple"),
    "set of nested tuples": (b"\x80\x04\x8f(" + NESTED + b"\x90.", "a key of type tuple"),
    "frozenset of nested tuples": (b"\x80\x04(" + NESTED + b"\x91.", "a key of type tuple"),
    "set called with them": (PROTO + b"c__builtin__\nset\n]" + NESTED + b"a\x85R.", "a key of type tuple"),
    "dict called with them": (PROTO + b"c__builtin__\ndict\n]" + NESTED + b"K\x01\x86a\x85R.", "a key of type tuple"),
    "nested tuples": (PROTO + NESTED + b".", "more than memory can hold"),
    "bytearray of any size": (PROTO + b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "bytearray of a int"),
    "bytes of any size": (PROTO + b"c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R.", "bytes of a int"),
    "bytes not there": (b"\x80\x04\x8e" + (10**12).to_bytes(8, "little") + b"abc.", "declares 1000000000000"),
    "bytearray not there": (b"\x80\x05\x96" + (10**12).to_bytes(8, "little") + b"abc.", "declares 1000000000000"),
    "text not there": (b"\x80\x04\x8d" + (10**12).to_bytes(8, "little") + b"abc.", "declares 1000000000000"),
    "frame not there": (b"\x80\x04\x95" + (10**12).to_bytes(8, "little") + b"N.", "declares 1000000000000"),
    "array without numbers": (
        PROTO + b"cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85\x85R.", "calls numpy.ndarray"
    ),
    "array of declared size": (
        PROTO + b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85U\x01btR.",
        "numpy did not write",
    ),
    "copies of copies": (
        PROTO + b"(" + BYTES_1K + b"q\x010" + b"c__builtin__\nbytearray\nh\x01\x85R" * 10000 + b"t.", "far more memory"
    ),
    "container in itself": (PROTO + b"]q\x01h\x01a.", "contains itself"),
    "deep lists": (PROTO + b"]" * 5000 + b"a" * 4999 + b".", "more than 100 deep"),
    "class": (PROTO + b"c__builtin__\nlist\n.", "it holds builtins.list"),
}  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_at_once(data, message):
    with pytest.raises(pickle.UnpicklingError, match=message):
        load(io.BytesIO(data))


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "i2", "u1", "?", "c8", "U5", "S3"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_all_plain_types(dtype, order):
    array = np.array([[1, 0, 2], [0, 1, 7]]).astype(dtype)
    array = np.asfortranarray(array) if order == "F" else array
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        back = load(io.BytesIO(pickle.dumps({"w": array, "s": array[0, 0]}, protocol)))
        assert back["w"].dtype.newbyteorder("=") == array.dtype.newbyteorder("=") and back["s"] == array[0, 0]
        np.testing.assert_array_equal(back["w"], array)


@pytest.mark.parametrize("dtype", ["O", "V8", [("a", "i4")]])
def test_arrays_of_objects_and_structures_are_refused(dtype):
    with pytest.raises(pickle.UnpicklingError, match="numbers and fixed texts"):
        load(io.BytesIO(pickle.dumps(np.zeros(2, dtype))))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(VALUES, st.integers(2, pickle.HIGHEST_PROTOCOL))
def test_plain_values_come_back(value, protocol):
    assert load(io.BytesIO(pickle.dumps(value, protocol))) == value


STATE = {
    "model": collections.OrderedDict(a=np.arange(12, dtype=np.float32).reshape(3, 4), b=np.float64(2.5)),
    "classes": ["x", "y"],
    "shape": (3, 4),
    "raw": bytearray(b"abc"),
    "names": {"a", "b"},
}


@pytest.mark.timeout(60)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.integers(2, pickle.HIGHEST_PROTOCOL),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
)
def test_damaged_bytes_are_refused_or_read(protocol, changes):
    """One error type that names the file, whatever is damaged; no array is larger than the file."""
    data = bytearray(pickle.dumps(STATE, protocol))
    for place, value in changes:
        data[place % len(data)] = value
    file = io.BytesIO(bytes(data))
    file.name = "weights.pkl"
    try:
        value = load(file)
    except pickle.UnpicklingError as error:
        assert "weights.pkl" in str(error)
        return
    model = value.get("model") if isinstance(value, dict) else None
    arrays = [v for v in model.values() if isinstance(v, np.ndarray)] if isinstance(model, dict) else []
    assert sum(a.nbytes for a in arrays) <= len(data)
