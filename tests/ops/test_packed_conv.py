"""Packed convolutions equal torch's, whatever came before."""

import itertools

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dyn_d2.ops.packed_conv import PackedConv

GEOMETRIES = [
    # channels in and out, kernel, stride, dilation, groups
    (8, 12, 1, 1, 1, 1),
    (8, 12, 3, 2, 1, 2),
    (8, 8, 3, 1, 2, 8),
    (3, 16, 7, 2, 1, 1),
]


def make(cin, cout, kernel, stride, dilation, groups, dtype=torch.float32):
    weight, bias = torch.randn(cout, cin // groups, kernel, kernel, dtype=dtype), torch.randn(cout, dtype=dtype)
    padding = dilation * (kernel // 2)
    layer = PackedConv(
        weight, bias, stride=(stride,) * 2, padding=(padding,) * 2, dilation=(dilation,) * 2, groups=groups
    )
    return layer, lambda x: F.conv2d(x, weight, bias, stride, padding, dilation, groups)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@torch.no_grad()
def test_equals_conv2d_for_any_sequence_of_sizes(geometry, relu, dtype):
    layer, reference = make(*geometry, dtype=dtype)
    layouts = [torch.contiguous_format, torch.channels_last]
    for (images, size), layout in itertools.product([(1, 9), (1, 9), (3, 9), (2, 12), (0, 12), (1, 12)], layouts):
        x = torch.randn(images, geometry[0], size, size + 2, dtype=dtype).contiguous(memory_format=layout)
        expected = reference(x)
        torch.testing.assert_close(layer(x, relu=relu), F.relu(expected) if relu else expected, rtol=1e-4, atol=1e-4)
        total = torch.randn_like(expected).contiguous(memory_format=layout)
        summed = F.relu(total + expected) if relu else total + expected
        out = layer(x, total, relu=relu)
        assert out.data_ptr() == total.data_ptr()
        torch.testing.assert_close(out, summed, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_flop_counters_see_packed_convolutions():
    layer, reference = make(*GEOMETRIES[1])
    x = torch.randn(2, 8, 9, 9)
    with FlopCounterMode(display=False) as expected:
        reference(x)
    for _ in range(3):  # the first time it is conv2d
        with FlopCounterMode(display=False) as counter:
            total = layer(x)
        assert counter.get_total_flops() == expected.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        layer(x, total)
    assert counter.get_total_flops() == expected.get_total_flops()
