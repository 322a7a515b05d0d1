"""Sparse convolution of channels gives what dense masked convolution gives."""

import pytest
import torch
from torch import nn

from dyn_d2.gating.channels import chain_costs, run_chain, sparse_conv, unpack

from detectron2.layers import Conv2d, get_norm

pytestmark = pytest.mark.usefixtures("channel_conv_paths")


def make_conv(cin: int, cout: int, kernel: int = 3, norm: str = "BN", **kwargs) -> Conv2d:
    layer = Conv2d(
        cin, cout, kernel, padding=kwargs.get("dilation", 1) * (kernel // 2), norm=get_norm(norm, cout), **kwargs
    )
    if layer.norm is not None:
        for vector in (layer.norm.weight, layer.norm.bias, layer.norm.running_mean, layer.norm.running_var):
            nn.init.uniform_(vector, 0.5, 1.5)
    return layer.eval()


def make_gate(n: int, channels: int, rate: float) -> torch.Tensor:
    return (torch.rand(n, channels) < rate) * (0.5 + torch.rand(n, channels))


def run_both(layers, gates, x, residual):
    with torch.no_grad():
        return [run_chain(x, layers, gates, residual, sparse=sparse) for sparse in (True, False)]


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 1), (1, 2), (1, 4), (2, 2)])
def test_sparse_equals_dense_masked(stride, dilation, rate):
    layers = [
        make_conv(5, 9, 1, bias=False),
        make_conv(9, 7, 3, bias=False, stride=stride, dilation=dilation),
        make_conv(7, 5, 1, norm="", bias=True),
    ]
    x = torch.randn(3, 5, 13, 18)
    gates = [make_gate(3, 9, rate), make_gate(3, 7, rate), None]
    size = [-(-extent // stride) for extent in x.shape[-2:]]
    sparse, dense = run_both(layers, gates, x, torch.randn(3, 5, *size))
    torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", ""])
def test_one_channel_open_and_each_image_by_itself(norm):
    layers = [make_conv(4, 6, norm=norm, bias=norm == ""), make_conv(6, 4, norm=norm, bias=norm == "")]
    x, residual = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
    gate = torch.zeros(4, 6)
    gate[0, 5], gate[1, 0], gate[2] = 1.5, 0.1, 1.0  # image 3: none
    sparse, dense = run_both(layers, [gate, None], x, residual)
    torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=1e-5)
    alone, _ = run_both(layers, [gate[1:2], None], x[1:2], residual[1:2])
    torch.testing.assert_close(alone, sparse[1:2], atol=1e-5, rtol=1e-5)


def test_no_image():
    layers = [make_conv(4, 6, stride=2, bias=False), make_conv(6, 4, bias=False)]
    sparse, dense = run_both(layers, [torch.zeros(0, 6), None], torch.randn(0, 4, 9, 9), torch.randn(0, 4, 5, 5))
    assert sparse.shape == dense.shape == (0, 4, 5, 5)


def test_channels_last_input():
    layers, x = [make_conv(4, 6, bias=False), make_conv(6, 4, bias=False)], torch.randn(2, 4, 8, 8)
    gates = [make_gate(2, 6, 0.5), None]
    expected, _ = run_both(layers, gates, x, x)
    got, _ = run_both(layers, gates, *[x.contiguous(memory_format=torch.channels_last)] * 2)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_changed_parameters_are_seen_at_once():
    layers, x = [make_conv(4, 6, bias=False), make_conv(6, 4, bias=False)], torch.randn(2, 4, 8, 8)
    gates = [make_gate(2, 6, 0.5), None]
    run_both(layers, gates, x, x)
    layers[0].weight.data.mul_(2)
    layers[1].norm.running_var.data.mul_(3)
    sparse, dense = run_both(layers, gates, x, x)
    torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=1e-5)


def test_unpack_is_the_dense_map():
    conv, x, gate = make_conv(4, 6, bias=False), torch.randn(3, 4, 8, 8), make_gate(3, 6, 0.5)
    with torch.no_grad():
        packed = sparse_conv(x, conv, conv.norm, None, gate)
        dense = conv(x).relu() * gate[:, :, None, None]
    torch.testing.assert_close(unpack(packed, gate), dense, atol=1e-5, rtol=1e-5)


def test_closed_weights_are_not_read():
    conv, last = make_conv(4, 6, bias=False), make_conv(6, 4, bias=False)
    x, gate = torch.randn(2, 4, 8, 8), torch.ones(2, 6)
    gate[:, 2] = 0
    expected, _ = run_both([conv, last], [gate, None], x, x)
    conv.weight.data[2], last.weight.data[:, 2] = torch.nan, torch.nan
    got, _ = run_both([conv, last], [gate, None], x, x)
    torch.testing.assert_close(got, expected)


def test_gradient_in_evaluation_equals_the_dense_one():
    layers, x = [make_conv(4, 6, bias=False), make_conv(6, 4, bias=False)], torch.randn(2, 4, 8, 8)
    gates, grads = [make_gate(2, 6, 0.5), None], []
    for sparse in (True, False):
        leaf = x.clone().requires_grad_()
        run_chain(leaf, layers, gates, x, sparse=sparse).square().sum().backward()
        grads.append((leaf.grad, layers[0].weight.grad.clone()))
        layers[0].weight.grad = None
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)


def test_autocast_runs():
    layers, x = [make_conv(4, 6, bias=False), make_conv(6, 4, bias=False)], torch.randn(2, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        sparse, dense = run_both(layers, [make_gate(2, 6, 0.5), None], x, x)
    torch.testing.assert_close(sparse.float(), dense.float(), atol=0.2, rtol=0.1)


def test_costs_by_hand():
    layers = [make_conv(4, 6, 1, bias=False), make_conv(6, 8, stride=2, bias=False), make_conv(8, 16, 1, bias=False)]
    first, second = torch.zeros(3, 6), torch.zeros(3, 8)
    first[0, :2], first[1], second[0, :5], second[1] = 1, 1, 1, 1
    dense, executed = chain_costs(layers, [first, second, None], (10, 7))
    assert dense == 4 * 6 * 70 + 6 * 8 * 9 * 20 + 8 * 16 * 20
    assert executed.tolist() == [4 * 2 * 70 + 2 * 5 * 9 * 20 + 5 * 16 * 20, dense, 0]
