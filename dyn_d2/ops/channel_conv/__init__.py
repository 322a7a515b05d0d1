"""Convolution with norm, residual, ReLU and gate of which only chosen channels are computed, image by image.

Packed maps: (N, C, H, W) in which image n keeps the channels that its gate opens first, in order; what comes after them
is undefined.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from dyn_d2.ops.build import load_kernel

_SOURCES = (Path(__file__).with_name("channel_conv.cpp"),)


def load() -> bool:
    """Whether the compiled kernel can be used; the first call may compile it. For CPU and float32, no gradients."""
    if not load_kernel("channel_conv", _SOURCES):
        return False
    _register()
    return True


def channel_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm: Sequence[Tensor] = (),
    eps: float = 1e-5,
    x_gate: Tensor | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    relu: bool = True,
    overwrite: bool = False,
) -> Tensor:
    """The compiled kernel; ``load`` has returned True. All tensors are contiguous float32 on the CPU.

    Args:
        x: (N, C, H, W); packed if ``x_gate`` is given.
        weight: (C', C, kH, kW); may also be in the memory layout channels_last.
        bias: (C',).
        norm: nothing, or weight, bias, mean and variance, (C',) each.
        eps: added to the variance.
        x_gate: (N, C); only channels where it is not 0 are read.
        gate: (N, C'); only channels where it is not 0 are computed, and multiplied by it after ReLU.
        residual: (N, C', H', W'), added before ReLU; goes with ``gate`` None only.
        stride, padding, dilation: as in ``F.conv2d``.
        relu: whether there is a ReLU.
        overwrite: the output takes the place of ``residual``, which may not share memory with ``x``.

    Returns:
        (N, C', H', W'), packed if ``gate`` is given.
    """
    norm, kernels = list(norm), torch.ops.dyn_d2
    if overwrite and residual is not None and gate is None:
        kernels.channel_conv_into(residual, x, weight, bias, norm, eps, x_gate, stride, padding, dilation, relu)
        return residual
    return kernels.channel_conv(x, weight, bias, norm, eps, x_gate, gate, residual, stride, padding, dilation, relu)


def channel_conv_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm: Sequence[Tensor] = (),
    eps: float = 1e-5,
    x_gate: Tensor | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    relu: bool = True,
) -> Tensor:
    """The same by computing everything: unused places of a packed output are 0."""
    x = x if x_gate is None else _unpack(x, x_gate)
    out = F.conv2d(x, weight, bias, stride, padding, dilation)
    if len(norm):
        scale, shift, mean, variance = norm
        out = F.batch_norm(out, mean, variance, scale, shift, eps=eps)
    out = out if residual is None else out + residual
    out = F.relu(out) if relu else out
    return out if gate is None else _pack(out * gate[:, :, None, None], gate)


def _unpack(x: Tensor, gate: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for image, packed, opened in zip(out, x, gate != 0, strict=True):
        image[opened] = packed[: int(opened.sum())]
    return out


def _pack(x: Tensor, gate: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for packed, image, opened in zip(out, x, gate != 0, strict=True):
        packed[: int(opened.sum())] = image[opened]
    return out


def _output_shape(x, weight, bias, norm, eps, x_gate, gate, residual, stride, padding, dilation, relu) -> Tensor:
    size = [
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]
    return x.new_empty(x.shape[0], weight.shape[0], *size)


def _flops(x, weight, bias, norm, eps, x_gate, gate, residual, *geometry, out_val, **_) -> int:
    """Twice the multiply-adds, as torch.utils.flop_counter has it."""
    read = torch.full((len(x),), x.shape[1]) if x_gate is None else (x_gate != 0).sum(1)
    written = torch.full((len(x),), len(weight)) if gate is None else (gate != 0).sum(1)
    return 2 * int((read * written).sum()) * weight.shape[2:].numel() * out_val.shape[2:].numel()


def _flops_into(residual, x, weight, bias, norm, eps, x_gate, *geometry, out_val=None, **_) -> int:
    return _flops(x, weight, bias, norm, eps, x_gate, None, None, out_val=residual)


@functools.cache
def _register() -> None:
    """What torch has to know of the operators, which the kernel has defined by now: shapes without computing, for
    torch.compile and torch.export, and what they cost."""
    kernels = torch.ops.dyn_d2
    torch.library.register_fake("dyn_d2::channel_conv", _output_shape)
    torch.library.register_fake("dyn_d2::channel_conv_into", lambda *arguments: None)
    register_flop_formula(kernels.channel_conv, get_raw=True)(_flops)
    register_flop_formula(kernels.channel_conv_into, get_raw=True)(_flops_into)
