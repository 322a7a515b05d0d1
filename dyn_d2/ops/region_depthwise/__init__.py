"""Depthwise convolution on chosen pixels, and its gradients: C++ on a CPU in float32, torch code elsewhere.

Shape shorthand: n chosen pixels, K taps of a kernel, C channels.
"""

import functools
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from dyn_d2.ops.build import load_kernel

_SOURCES = (Path(__file__).with_name("region_depthwise.cpp"),)


def load() -> bool:
    """Whether the compiled kernel can be used; the first call may compile it. For CPU and float32."""
    if not load_kernel("region_depthwise", _SOURCES):
        return False
    _register()
    return True


def depthwise(rows: Tensor, index: Tensor, weight: Tensor, bias: Tensor, limit: float | None = None) -> Tensor:
    """
    Args:
        rows: (m, C), what is gathered from.
        index: (n, K) int64, which rows each pixel reads; -1 for a neighbour that is not there, which counts as 0.
        weight: (K, C).
        bias: (C,).
        limit: values end within [0, limit] (ReLU: inf, ReLU6: 6.0); None: there is no activation.

    Returns:
        (n, C): bias + the sum over the taps of weight * neighbour, channel by channel.
    """
    if not _compiled(rows, weight):
        return _in_torch(rows, index, weight, bias, limit)
    return torch.ops.dyn_d2.region_depthwise(
        rows.contiguous(), index.contiguous(), weight.contiguous(), bias.contiguous(), -1.0 if limit is None else limit
    )


def depthwise_grads(grad: Tensor, rows: Tensor, index: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``depthwise`` without an activation.

    Args:
        grad: (n, C), of its output.
        rows, index, weight: as it had them. No two pixels read the same row by the same tap, as with the kernel of a
            convolution.

    Returns:
        (m, C) of the rows and (K, C) of the weight.
    """
    if not len(index):
        return torch.zeros_like(rows), rows.new_zeros(index.shape[1], rows.shape[1])
    readers = index.new_full((len(rows), index.shape[1]), -1)  # which pixel reads a row by a tap
    pixel, tap = (index >= 0).nonzero(as_tuple=True)
    readers[index[pixel, tap], tap] = pixel
    grad_rows = depthwise(grad, readers, weight, grad.new_zeros(grad.shape[1]))
    if _compiled(rows, grad):
        parts = grad.contiguous(), rows.contiguous(), index.contiguous()
        return grad_rows, torch.ops.dyn_d2.region_depthwise_weight_grad(*parts)
    sums = []
    for neighbours in index.unbind(1):
        there = (neighbours >= 0).nonzero()[:, 0]
        sums.append((rows[neighbours[there]] * grad[there]).sum(0))
    return grad_rows, torch.stack(sums)


def _compiled(*values: Tensor) -> bool:
    return all(v.device.type == "cpu" and v.dtype == torch.float32 for v in values) and load()


def _in_torch(rows: Tensor, index: Tensor, weight: Tensor, bias: Tensor, limit: float | None) -> Tensor:
    total = bias.to(rows.dtype).expand(len(index), -1).clone()
    for neighbours, own in zip(index.unbind(1), weight.to(rows.dtype), strict=True):
        there = (neighbours >= 0).to(rows.dtype)[:, None]
        total.addcmul_(rows.index_select(0, neighbours.clamp(min=0)) * there, own)
    return total if limit is None else total.clamp_(0, limit)


def _flops(rows: list[int], index: list[int], *_, **__) -> int:
    """Twice the multiply-adds, as torch.utils.flop_counter has it."""
    return 2 * index[0] * index[1] * rows[1]


def _output_shape(rows: Tensor, index: Tensor, weight: Tensor, bias: Tensor, limit: float) -> Tensor:
    return rows.new_empty(len(index), rows.shape[1])


@functools.cache
def _register() -> None:
    torch.library.register_fake("dyn_d2::region_depthwise", _output_shape)
    register_flop_formula(torch.ops.dyn_d2.region_depthwise)(_flops)
