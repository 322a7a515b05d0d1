"""Multiply-adds of layers, by arithmetic."""

from torch import nn


def conv_cost(conv: nn.Conv2d, height: int, width: int) -> tuple[float, int, int]:
    """Multiply-adds per image of a convolution on a (height, width) map, and the size of its output."""
    size = [
        (extent + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for extent, pad, dilation, kernel, stride in zip(
            (height, width), conv.padding, conv.dilation, conv.kernel_size, conv.stride, strict=True
        )
    ]
    taps = conv.kernel_size[0] * conv.kernel_size[1]
    return float(conv.out_channels * (conv.in_channels // conv.groups) * taps * size[0] * size[1]), *size


def chain_cost(convs, height: int, width: int) -> tuple[float, int, int]:
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
