"""Arrays come through, code does not."""

import collections
import io
import os
import pickle

import numpy as np
import pytest

from dyn_d2.utils.restricted_pickle import load


class _RunsCode:
    def __reduce__(self):
        return os.system, ("touch /tmp/dyn_d2_must_not_exist",)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_protocol(protocol):
    state = {
        "model": collections.OrderedDict(weight=np.arange(6, dtype=np.float32).reshape(2, 3), count=np.int64(7)),
        "__author__": "x",
        "matching_heuristics": True,
    }
    back = load(io.BytesIO(pickle.dumps(state, protocol=protocol)))
    np.testing.assert_array_equal(back["model"]["weight"], state["model"]["weight"])
    assert back["model"]["count"] == 7 and back["matching_heuristics"] is True


def test_python2_pickle_of_a_numpy1_array():
    # pickle.dumps({'w': np.float32([1, 2])}, protocol=2) as Python 2.7 with numpy 1.x writes it
    data = (
        b"\x80\x02}q\x00U\x01wq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b"
        b"\x87Rq\x04(K\x01K\x02\x85cnumpy\ndtype\nq\x05U\x02f4K\x00K\x01\x87Rq\x06(K\x03U\x01<NNNJ\xff\xff\xff\xffJ"
        b"\xff\xff\xff\xffK\x00tb\x89U\x08\x00\x00\x80?\x00\x00\x00@tb s."
    ).replace(b"tb s.", b"tbs.")
    np.testing.assert_array_equal(load(io.BytesIO(data))["w"], np.float32([1, 2]))


@pytest.mark.parametrize("payload", [_RunsCode(), {"model": [_RunsCode()]}, os.path.join, np.load])
def test_code_is_refused_and_not_run(payload):
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        load(io.BytesIO(pickle.dumps(payload)))
    assert not os.path.exists("/tmp/dyn_d2_must_not_exist")


@pytest.mark.parametrize("data", [b"", b"not a pickle", pickle.dumps([1, 2])[:-3]])
def test_broken_file_says_so(data):
    with pytest.raises(pickle.UnpicklingError):
        load(io.BytesIO(data))
