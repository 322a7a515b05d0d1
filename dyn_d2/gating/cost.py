"""Multiply-adds of layers, by arithmetic."""

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .exporting import is_exporting

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """How a convolution moves over its map, vertically and horizontally."""

    stride: Pair
    padding: Pair
    dilation: Pair


def geometry(conv: nn.Conv2d) -> Geometry:
    """Stride, padding and dilation.

    Raises:
        ValueError: the padding is a word.
    """
    if isinstance(conv.padding, str):
        raise ValueError(f"a convolution with padding {conv.padding!r}: give it as numbers.")
    stride, padding, dilation = ((pair[0], pair[1]) for pair in (conv.stride, conv.padding, conv.dilation))
    return Geometry(stride, padding, dilation)


@lru_cache(maxsize=8192)
def _conv_cost(
    channels: tuple[int, int, int], extent: tuple[int, int], padding, dilation, kernel, stride
) -> tuple[float, int, int]:
    size = [
        (length + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i, length in enumerate(extent)
    ]
    inputs, outputs, groups = channels
    return float(outputs * (inputs // groups) * kernel[0] * kernel[1] * size[0] * size[1]), *size


def conv_cost(conv: nn.Conv2d, height: int, width: int) -> tuple[float, int, int]:
    """Multiply-adds per image of a convolution on a (height, width) map, and the size of its output."""
    if is_exporting():
        return 0.0, height, width
    channels = (conv.in_channels, conv.out_channels, conv.groups)
    return _conv_cost(channels, (height, width), conv.padding, conv.dilation, conv.kernel_size, conv.stride)


def unit_costs(cost: float, size: int, device: torch.device) -> Tensor:
    """(size,) tensor of equal costs, one for each element of a unit; not to be changed, as all who ask share it."""
    # What export makes has no values, and nobody else may get it.
    return torch.full((size,), cost, device=device) if is_exporting() else _unit_costs(cost, size, device)


@lru_cache(maxsize=8192)
def _unit_costs(cost: float, size: int, device: torch.device) -> Tensor:
    return torch.full((size,), cost, device=device)


def chain_cost(convs: Iterable[nn.Conv2d | None], height: int, width: int) -> tuple[float, int, int]:
    """The same for convolutions one after another; None among them is passed over."""
    total = 0.0
    for conv in convs:
        if conv is not None:
            cost, height, width = conv_cost(conv, height, width)
            total += cost
    return total, height, width


def linear_cost(*layers: nn.Linear) -> float:
    """Multiply-adds per image of linear layers."""
    return float(sum(layer.in_features * layer.out_features for layer in layers))


def lstm_cost(cell: nn.LSTMCell) -> float:
    """Multiply-adds of one step of an LSTM cell."""
    return float(4 * cell.hidden_size * (cell.input_size + cell.hidden_size))


def executed_by(shares: Tensor, unit_cost: Tensor) -> Tensor:
    """Multiply-adds of each image (N,) of units of which ``shares`` (N, U) ran, each of ``unit_cost`` (U,).

    Multiplied and summed, and in 32 bits at least: autocast makes a matrix product in 16, which end at 65,504.
    """
    kind = torch.promote_types(shares.dtype, torch.float32)
    return (shares.to(kind) * unit_cost.to(kind)).sum(-1)
