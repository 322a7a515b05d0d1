"""Convolutions of which only chosen input and output channels are computed, image by image (DeepMoE).

Shape shorthand: N images, C channels of a layer, H x W of its map. A gate is (N, C), at least 0; a channel is closed
where it is exactly 0.

Packed maps: between two sparse layers a map is (N, C, H, W) in which image n keeps its open channels first, in order;
what comes after them is undefined. ``unpack`` puts the channels back into their places.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.ops import channel_conv

from detectron2.layers import Conv2d

from .cost import conv_cost, geometry
from .norms import RunningNorm, running_norm


def run_chain(
    x: Tensor,
    layers: Sequence[Conv2d],
    gates: Sequence[Tensor | None],
    residual: Tensor,
    *,
    sparse: bool,
    overwrite: bool = False,
) -> Tensor:
    """Convolutions one after another, each with norm, ReLU and gate. Both ways of running give the same result.

    Args:
        x: (N, C, H, W).
        layers: ``detectron2.layers.Conv2d`` with a ``norm`` that treats each channel by itself.
        gates: for each layer (N, its output channels), or None for a layer whose output is not gated, as the last.
        residual: added to the output of the last layer before its ReLU.
        sparse: only compute channels that are open, with running statistics; else all, times their gate.
        overwrite: the output may take the place of ``residual`` in memory.

    Returns:
        (N, C', H', W').
    """
    x_gate = None
    for layer, gate in zip(layers, gates, strict=True):
        added = residual if layer is layers[-1] else None
        if sparse:
            x = sparse_conv(x, layer, layer.norm, x_gate, gate, residual=added, overwrite=overwrite)
        else:
            x = layer(x)
            x = apply_gate(F.relu_(x if added is None else x + added), gate)
        x_gate = gate
    return x


def apply_gate(x: Tensor, gate: Tensor | None) -> Tensor:
    """(N, C, H, W) times its gate, in the type of ``x``."""
    return x if gate is None else x * gate.to(x.dtype)[:, :, None, None]


def chain_costs(
    layers: Sequence[nn.Conv2d], gates: Sequence[Tensor | None], size: Sequence[int], x_gate: Tensor | None = None
) -> tuple[float, Tensor]:
    """Multiply-adds per image of convolutions one after another: of all channels, and (N,) of the open ones.

    Args:
        gates: as for ``run_chain``; one at least is given.
        size: height and width of the input.
        x_gate: what the input was gated by.
    """
    # Whole numbers, so that nothing is rounded before the end.
    height, width = size
    dense: float = 0
    executed: Tensor | int = 0
    inputs: Tensor | int = layers[0].in_channels if x_gate is None else x_gate.count_nonzero(1)
    for layer, gate in zip(layers, gates, strict=True):
        cost, height, width = conv_cost(layer, height, width)
        outputs: Tensor | int = layer.out_channels if gate is None else gate.count_nonzero(1)
        each = int(cost) // (layer.in_channels * layer.out_channels)
        dense, executed, inputs = dense + cost, executed + inputs * outputs * each, outputs
    assert isinstance(executed, Tensor)  # as one gate at least is given
    return dense, executed.float()


def sparse_conv(
    x: Tensor,
    conv: nn.Conv2d,
    norm: nn.Module | None,
    x_gate: Tensor | None,
    gate: Tensor | None,
    *,
    relu: bool = True,
    residual: Tensor | None = None,
    overwrite: bool = False,
) -> Tensor:
    """One convolution with its norm: reads the channels that ``x_gate`` opens, computes those that ``gate`` opens.

    By a compiled kernel where there is one and no gradient is asked for, else by slices of the weights.

    Args:
        x: (N, C, H, W), packed if ``x_gate`` is given.
        norm: batch norm in evaluation, frozen batch norm, or None. A norm inside ``conv`` is not looked at.
        relu: applied after norm and ``residual``, before the multiplication by ``gate``.
        residual: (N, C', H', W'); only where ``gate`` is None.
        overwrite: the output may take the place of ``residual`` in memory; it is not (a part of) ``x``.

    Returns:
        (N, C', H', W'), packed if ``gate`` is given.
    """
    if not _kernel_fits(x, conv):
        return _conv_by_indexing(x, conv, norm, x_gate, gate, relu, residual)
    statistics = None if norm is None else running_norm(norm)
    return channel_conv.channel_conv(
        x.contiguous(),
        conv.weight,
        conv.bias,
        () if statistics is None else (*_affine(statistics), statistics.running_mean, statistics.running_var),
        0.0 if statistics is None else statistics.eps,
        None if x_gate is None else x_gate.float().contiguous(),
        None if gate is None else gate.float().contiguous(),
        None if residual is None else residual.contiguous(),
        *geometry(conv),
        relu,
        overwrite,
    )


def _kernel_fits(x: Tensor, conv: nn.Conv2d) -> bool:
    learns = torch.is_grad_enabled() and (x.requires_grad or conv.weight.requires_grad)
    plain = x.device.type == "cpu" and x.dtype == conv.weight.dtype == torch.float32
    return plain and not learns and not torch.is_autocast_enabled("cpu") and channel_conv.load()


def _affine(norm: RunningNorm) -> tuple[Tensor, Tensor]:
    if norm.weight is None or norm.bias is None:
        return torch.ones_like(norm.running_mean), torch.zeros_like(norm.running_mean)
    return norm.weight, norm.bias


def unpack(x: Tensor, gate: Tensor) -> Tensor:
    """A packed map with every channel in its place; closed ones are 0."""
    out = torch.zeros_like(x)
    for n, chosen in enumerate(_indices(gate)):
        out[n, chosen] = x[n, : len(chosen)]
    return out


def _indices(gate: Tensor) -> list[Tensor]:
    """The open channels of each image."""
    where = (gate != 0).nonzero()
    return list(where[:, 1].split(torch.bincount(where[:, 0], minlength=len(gate)).tolist()))


def _conv_by_indexing(
    x: Tensor,
    conv: nn.Conv2d,
    norm: nn.Module | None,
    x_gate: Tensor | None,
    gate: Tensor | None,
    relu: bool,
    residual: Tensor | None,
) -> Tensor:
    """``sparse_conv`` by slices of the weights; differentiable, on any device."""
    if len(x) == 0 or (x_gate is None and gate is None):  # no image differs from another
        out = _conv_one(x, conv, norm, None, None)
        out = out if residual is None else out + residual
        return F.relu(out) if relu else out
    reads = [None] * len(x) if x_gate is None else _indices(x_gate)
    writes = [None] * len(x) if gate is None else _indices(gate)
    maps = []
    for n, (read, write) in enumerate(zip(reads, writes, strict=True)):
        each = _conv_one(x[n : n + 1], conv, norm, read, write)
        each = each if residual is None else each + residual[n : n + 1]
        each = F.relu(each) if relu else each
        if write is not None and gate is not None:
            each = each * gate[n, write].to(each.dtype)[:, None, None]
            each = F.pad(each, (0, 0, 0, 0, 0, conv.out_channels - len(write)))
        maps.append(each)
    return torch.cat(maps)


def _conv_one(x: Tensor, conv: nn.Conv2d, norm: nn.Module | None, read: Tensor | None, write: Tensor | None) -> Tensor:
    """Convolution and norm of images (N, C, H, W) with the chosen channels, the same for all."""
    weight = conv.weight if write is None else conv.weight.index_select(0, write)
    if read is not None:
        weight, x = weight.index_select(1, read), x[:, : len(read)]
    chosen = slice(None) if write is None else write
    if 0 in weight.shape[:2]:  # what torch has no convolution for
        _, height, width = conv_cost(conv, *x.shape[-2:])
        out = x.new_zeros(len(x), len(weight), height, width)
    else:
        out = F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation)
    out = out if conv.bias is None else out + conv.bias[chosen, None, None].to(out.dtype)
    if norm is None or len(weight) == 0:
        return out
    statistics = running_norm(norm)
    weight, bias = _affine(statistics)
    mean, variance = statistics.running_mean[chosen], statistics.running_var[chosen]
    return F.batch_norm(out, mean, variance, weight[chosen], bias[chosen], eps=statistics.eps)
