"""Convolution with groups on chosen pixels only, depthwise among them; see region_conv.py.

Shape shorthand: n chosen pixels, C channels, C' output channels, G groups, K taps of a kernel.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dyn_d2.ops.onednn import Limit, limit_of, rectify_
from dyn_d2.ops.region_conv import Region, Taps, map_rows
from dyn_d2.ops.region_depthwise import depthwise, depthwise_grads, load


class GroupedRegionMatrix:
    """What ``RegionMatrix`` is for a convolution with groups; for inference."""

    def __init__(self, weight: Tensor, bias: Tensor | None, groups: int) -> None:
        """
        Args:
            weight: (C', C / G, kh, kw), as ``conv2d`` takes it.
            bias: (C',) or None for 0.
            groups: G.
        """
        weight = weight.detach()
        self.outputs, self._groups = len(weight), groups
        self._bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        self._depthwise = is_depthwise(weight, groups)
        self._matrix = _by_tap(weight) if self._depthwise else _by_group(weight, groups)

    def __call__(self, rows: Tensor, taps: Taps | None, total: Tensor | None = None, *, relu: Limit = False) -> Tensor:
        """Arguments as of ``RegionMatrix``."""
        limit = limit_of(relu)
        index = _index(rows, taps)
        if self._depthwise:
            out = depthwise(rows, index, self._matrix, self._bias, limit if total is None else None)
            return out if total is None else rectify_(total.add_(out), limit)
        out = _grouped(rows, index, self._matrix.to(rows.dtype), self._groups) + self._bias.to(rows.dtype)
        return rectify_(out if total is None else total.add_(out), limit)


class DenseDepthwise:
    """A dilated depthwise convolution of whole maps, which oneDNN is slow at: that of a region of all pixels."""

    def __init__(self, weight: Tensor, bias: Tensor, dilation: tuple[int, int]) -> None:
        """
        Args:
            weight: (C, 1, kh, kw).
            bias: (C,).
        """
        self._kernel, self._dilation = (weight.shape[2], weight.shape[3]), dilation
        self._matrix = GroupedRegionMatrix(weight, bias, len(weight))

    @staticmethod
    def suits(
        weight: Tensor, *, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], groups: int
    ) -> bool:
        """Whether it is a convolution of this kind that keeps the size of maps, and the compiled kernel is there."""
        keeps = all(p == d * (side // 2) for p, d, side in zip(padding, dilation, weight.shape[2:], strict=True))
        depthwise_alone = is_depthwise(weight, groups) and dilation != (1, 1) and stride == (1, 1) and keeps
        return depthwise_alone and weight.device.type == "cpu" and weight.dtype == torch.float32 and load()

    def __call__(self, x: Tensor, total: Tensor | None = None, *, relu: Limit = False) -> Tensor:
        """Arguments as of ``PackedConv``."""
        taps = _every_pixel((len(x), *x.shape[2:]), self._kernel, self._dilation)
        out = _as_map(self._matrix(map_rows(x), taps, relu=relu if total is None else False), x)
        return out if total is None else rectify_(total.add_(out), limit_of(relu))


@functools.lru_cache(maxsize=16)
def _every_pixel(size: tuple[int, int, int], kernel: tuple[int, int], dilation: tuple[int, int]) -> Taps:
    """Of all pixels of N maps of H x W; networks have few kernels, and sizes come again."""
    with torch.inference_mode(False):  # a training may use it next
        return Region(torch.arange(size[0] * size[1] * size[2]), size).taps(kernel, dilation)


def _as_map(rows: Tensor, like: Tensor) -> Tensor:
    """(N * H * W, C) of all pixels of ``like`` -> (N, C, H, W) in the layout channels_last."""
    return rows.view(len(like), *like.shape[2:], -1).permute(0, 3, 1, 2)


def dense_depthwise(x: Tensor, weight: Tensor, dilation: tuple[int, int]) -> Tensor:
    """What ``DenseDepthwise`` gives without a bias, with gradients for the map x and the weight."""
    taps = _every_pixel((len(x), *x.shape[2:]), (weight.shape[2], weight.shape[3]), dilation)
    return _as_map(grouped_region_conv(map_rows(x), weight, len(weight), taps), x)


def is_depthwise(weight: Tensor, groups: int) -> bool:
    """Whether each channel has a kernel of its own, and gives one channel."""
    return weight.shape[1] == 1 and len(weight) == groups


def grouped_region_conv(rows: Tensor, weight: Tensor, groups: int, taps: Taps | None) -> Tensor:
    """(n, C'), with gradients for rows and weight; arguments as of ``region_conv``."""
    index = _index(rows, taps)
    if is_depthwise(weight, groups):
        return _Depthwise.apply(rows, _by_tap(weight), index)
    return _grouped(rows, index, _by_group(weight, groups).to(rows.dtype), groups)


def _index(rows: Tensor, taps: Taps | None) -> Tensor:
    """(n, K): the rows that each pixel reads."""
    return torch.arange(len(rows), device=rows.device)[:, None] if taps is None else taps.index


def _by_tap(weight: Tensor) -> Tensor:
    """(C, 1, kh, kw) -> (K, C)."""
    return weight.flatten(1).t().contiguous()


def _by_group(weight: Tensor, groups: int) -> Tensor:
    """(C', C / G, kh, kw) -> (G, K * C / G, C' / G)."""
    return weight.flatten(2).view(groups, -1, *weight.flatten(2).shape[1:]).permute(0, 3, 2, 1).flatten(1, 2)


def _grouped(rows: Tensor, index: Tensor, matrix: Tensor, groups: int) -> Tensor:
    """(m, C) rows, (n, K) index and (G, K * C / G, C' / G) matrix -> (n, C')."""
    padded = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])  # its last row, -1, is a neighbour that is not there
    values = padded[index].unflatten(2, (groups, -1)).permute(2, 0, 1, 3).flatten(2)
    return torch.bmm(values, matrix).permute(1, 0, 2).flatten(1)


class _Depthwise(torch.autograd.Function):
    """Keeps rows, not the K times as many values that are gathered from them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight, index)
        values = _computed(rows)
        return depthwise(values, index, weight.to(values.dtype), values.new_zeros(values.shape[1])).to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, weight, index = ctx.saved_tensors
        values = _computed(rows)
        grads = depthwise_grads(grad.to(values.dtype), values, index, weight.to(values.dtype))
        return grads[0].to(rows.dtype), grads[1].to(weight.dtype), None


def _computed(rows: Tensor) -> Tensor:
    """In the type that sums are taken in: float32 on a CPU, where no kernel adds halves."""
    return rows.float() if rows.device.type == "cpu" and rows.dtype != torch.float64 else rows
