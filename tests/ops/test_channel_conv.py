"""The compiled convolution of chosen channels against its reference."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dyn_d2.ops import channel_conv as op

pytestmark = pytest.mark.skipif(not op.load(), reason="no compiled kernel on this machine")


def arguments(kernel=3, cin=5, cout=8, size=(9, 11), stride=1, dilation=1, rate=0.5, packed=True):
    x = torch.randn(2, cin, *size)
    x_gate = (torch.rand(2, cin) < rate).float() if packed else None
    return {
        "x": x if x_gate is None else op._pack(x, x_gate),
        "weight": torch.randn(cout, cin, kernel, kernel),
        "bias": torch.randn(cout),
        "norm": [torch.rand(cout) + 0.5, torch.randn(cout), torch.randn(cout), torch.rand(cout) + 0.5],
        "x_gate": x_gate,
        "gate": (torch.rand(2, cout) < rate) * torch.rand(2, cout) if packed else None,
        "stride": (stride, stride),
        "padding": (dilation * (kernel // 2),) * 2,
        "dilation": (dilation, dilation),
    }


def assert_equal_where_defined(got, expected, gate):
    assert got.shape == expected.shape
    for n in range(len(got)):
        used = got.shape[1] if gate is None else int((gate[n] != 0).sum())
        torch.testing.assert_close(got[n, :used], expected[n, :used], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_equals_reference(kernel, packed):
    sizes = [(1, 1), (7, 7), (8, 31), (33, 6)]  # shorter and longer than a vector
    for stride, dilation, size, rate in itertools.product((1, 2), (1, 3), sizes, (0.0, 0.4, 1.0)):
        case = arguments(kernel, size=size, stride=stride, dilation=dilation, rate=rate, packed=packed)
        assert_equal_where_defined(op.channel_conv(**case), op.channel_conv_reference(**case), case["gate"])


@pytest.mark.parametrize("cout", range(1, 15))
def test_any_number_of_channels(cout):
    case = arguments(cin=3, cout=cout, rate=1.0)
    assert_equal_where_defined(op.channel_conv(**case), op.channel_conv_reference(**case), case["gate"])


def test_unequal_sides_no_padding_no_relu():
    case = arguments(packed=False)
    case |= {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2), "relu": False, "norm": [], "bias": None}
    case["weight"] = torch.randn(8, 5, 2, 3)
    expected = op.channel_conv_reference(**case)
    case["residual"] = torch.randn_like(expected)
    assert_equal_where_defined(op.channel_conv(**case), op.channel_conv_reference(**case), None)


@pytest.mark.parametrize("kernel", [1, 3])
def test_weights_in_the_other_memory_layout(kernel):
    case = arguments(kernel)
    expected = op.channel_conv_reference(**case)
    case["weight"] = case["weight"].contiguous(memory_format=torch.channels_last)
    assert_equal_where_defined(op.channel_conv(**case), expected, case["gate"])


def test_output_in_place_of_the_residual():
    case = arguments() | {"gate": None}
    case["residual"] = torch.randn(2, 8, 9, 11)
    expected = op.channel_conv_reference(**case)
    got = op.channel_conv(**case, overwrite=True)
    assert got is case["residual"]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)


def test_map_larger_than_a_panel():
    case = arguments(cin=40, cout=3, size=(90, 100), rate=0.9)
    assert_equal_where_defined(op.channel_conv(**case), op.channel_conv_reference(**case), case["gate"])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads(threads):
    before, case = torch.get_num_threads(), arguments(cout=13, size=(7, 7))
    torch.set_num_threads(threads)
    try:
        assert_equal_where_defined(op.channel_conv(**case), op.channel_conv_reference(**case), case["gate"])
    finally:
        torch.set_num_threads(before)


def test_not_a_number_goes_through_relu():
    case = arguments(kernel=1, packed=False)
    case["x"][0] = torch.nan
    assert op.channel_conv(**case)[0].isnan().all() and not op.channel_conv(**case)[1].isnan().any()


def test_flops_are_those_of_the_chosen_channels():
    case = arguments(size=(6, 7))
    read, written = ((case[name] != 0).sum(1) for name in ("x_gate", "gate"))
    with FlopCounterMode(display=False) as counter:
        op.channel_conv(**case)
    assert counter.get_total_flops() == 2 * int((read * written).sum()) * 9 * 6 * 7
    residual = torch.randn(2, 8, 6, 7)
    with FlopCounterMode(display=False) as counter:
        op.channel_conv(**{**case, "gate": None}, residual=residual, overwrite=True)
    assert counter.get_total_flops() == 2 * int(read.sum()) * 8 * 9 * 6 * 7


def test_shapes_without_computing():
    case = arguments(stride=2)
    out = torch.ops.dyn_d2.channel_conv
    meta = {key: value.to("meta") if isinstance(value, torch.Tensor) else value for key, value in case.items()}
    meta["norm"] = [vector.to("meta") for vector in case["norm"]]
    order = ("x", "weight", "bias", "norm")
    got = out(*(meta[key] for key in order), 1e-5, meta["x_gate"], meta["gate"], None, (2, 2), (1, 1), (1, 1), True)
    assert got.shape == op.channel_conv(**case).shape and got.device.type == "meta"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(2, 4, 9, 11)}, "4 channels"),
        ({"gate": torch.ones(3, 8)}, "gate has to have the shape"),
        ({"x_gate": torch.ones(2, 5, dtype=torch.float64)}, "float32"),
        ({"residual": torch.zeros(2, 8, 9, 11)}, "no residual"),
        ({"norm": [torch.ones(8)]}, "norm is"),
        ({"weight": torch.randn(8, 5, 3, 6)[..., ::2]}, "either memory layout"),
        ({"x": torch.randn(2, 5, 9, 11)[:, :, :, ::2]}, "contiguous"),
        ({"padding": (0, 0), "x": torch.randn(2, 5, 2, 2)}, "smaller than the kernel"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    with pytest.raises(RuntimeError, match=message):
        op.channel_conv(**{**arguments(), **change})
