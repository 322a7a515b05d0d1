"""Pooling over the image alone, and batch norm of single values."""

import pytest
import torch
from torch import nn

from dyn_d2.gating.policies.gate_layers import (
    GateNorm,
    apply_linear,
    check_choice,
    check_positive,
    pool_valid,
    valid_area,
    zero_padding,
)


def slow_pool(features, sizes, padded):
    """Mean over the cells that hold some pixel of the image."""
    rows = []
    for x, (height, width) in zip(features, sizes, strict=True):
        cells = [
            x[:, i, j]
            for i in range(x.shape[1])
            for j in range(x.shape[2])
            if i * padded[0] < height * x.shape[1] and j * padded[1] < width * x.shape[2]
        ]
        rows.append(torch.stack(cells).mean(0))
    return torch.stack(rows)


@pytest.mark.parametrize("shape", [(16, 12), (4, 3), (5, 5), (1, 1)])
def test_pooling_counts_only_cells_that_hold_some_of_the_image(shape):
    images, sizes = torch.zeros(4, 3, 64, 48), [(64, 48), (1, 1), (33, 16), (17, 47)]
    features = torch.randn(4, 7, *shape)
    pooled = pool_valid(features, valid_area(images, sizes))
    assert torch.allclose(pooled, slow_pool(features, sizes, (64, 48)), atol=1e-5)


def test_without_padding_it_is_the_mean():
    images, features = torch.zeros(2, 3, 8, 8), torch.randn(2, 5, 4, 4)
    assert valid_area(images, None) is None
    assert valid_area(images, [(8, 8), (8, 8)]) is None
    assert torch.allclose(pool_valid(features, None), features.mean((2, 3)))
    assert zero_padding(features, None) is features


def test_not_a_number_in_the_padding_does_not_spread():
    features = torch.full((1, 2, 4, 4), float("nan"))
    features[:, :, :2, :2] = 1.0
    valid = valid_area(torch.zeros(1, 3, 16, 16), [(8, 8)])
    assert pool_valid(features, valid).tolist() == [[1.0, 1.0]]
    assert zero_padding(features, valid).sum().item() == 8.0


def test_pooling_half_precision_adds_up_in_float32():
    features = torch.full((1, 1, 64, 64), 100.0, dtype=torch.float16)
    assert pool_valid(features, None).item() == 100.0
    valid = valid_area(torch.zeros(1, 3, 64, 64), [(60, 64)])
    assert pool_valid(features, valid).item() == 100.0  # the sum is beyond float16


def test_gate_norm_is_batch_norm_but_for_single_values():
    norm, plain = GateNorm(3), nn.BatchNorm2d(3)
    many = torch.randn(4, 3, 2, 2)
    assert torch.equal(norm(many), plain(many))
    mean = norm.running_mean.clone()
    for x in (torch.randn(1, 3, 1, 1), torch.zeros(0, 3, 2, 2)):
        assert norm(x).shape == x.shape
        assert torch.equal(norm.running_mean, mean)
    single = torch.randn(1, 3, 1, 1)
    out = norm(single)
    assert torch.allclose(out, norm.eval()(single))


def test_apply_linear_is_float32_under_autocast():
    layer, x = nn.Linear(4, 2), torch.randn(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = apply_linear(layer, x)
    assert out.dtype == torch.float32 and torch.allclose(out, layer(x))


def test_checks_name_the_key():
    with pytest.raises(ValueError, match="MODEL.POLICY.TEMPERATURE is 0"):
        check_positive("TEMPERATURE", 0)
    with pytest.raises(ValueError, match="MODEL.POLICY.FIXED.ORDER is 'first': use one of 'last', 'even'"):
        check_choice("FIXED.ORDER", "first", ("last", "even"))
