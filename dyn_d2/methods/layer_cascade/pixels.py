"""Layers on whole feature maps or on chosen pixels of them, with the same code (Layer Cascade).

Layers take and give either a map, (N, C, H, W), or ``Pixels``. In evaluation batch norm, a sum and ReLU are part of the
convolution, in both cases.

Shape shorthand: n chosen pixels of all N maps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.gating.execution import running_statistics
from dyn_d2.gating.folding import fold, folds, kept, may_fold
from dyn_d2.ops.grouped_region import DenseDepthwise, GroupedRegionMatrix, dense_depthwise
from dyn_d2.ops.onednn import Limit, limit_of, rectify_
from dyn_d2.ops.packed_conv import PackedConv
from dyn_d2.ops.region_conv import Region, RegionMatrix, Taps, map_rows, region_conv, region_max_pool

from detectron2.layers import Conv2d


@dataclass(frozen=True)
class Pixels:
    """The values of chosen pixels.

    Attributes:
        rows: (n, C).
        region: which pixels these are.
        table: (m, C), where kernels find the neighbours; None: in ``rows``.
        source: the pixels that ``table`` holds; None: all. What is not in a table is 0.
    """

    rows: Tensor
    region: Region
    table: Tensor | None = None
    source: Region | None = None

    def gathered_by(self, kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[Tensor, Taps | None]:
        """The rows that a convolution reads, and which of them for each pixel."""
        if kernel == (1, 1):
            return self.rows, None
        if self.table is None:
            return self.rows, self.region.taps(kernel, dilation, self.region)
        return self.table, self.region.taps(kernel, dilation, self.source)


Features = Tensor | Pixels


class ScaledConv2d(Conv2d):
    """A convolution whose output is multiplied by the constant ``scale``."""

    scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


def restrict(x: Features, region: Region) -> Pixels:
    """Only those pixels, which x contains; the others are still seen by the kernel that comes next."""
    if isinstance(x, Tensor):
        table = map_rows(x)
        return Pixels(table.index_select(0, region.index), region, table)
    return Pixels(x.rows.index_select(0, region.rows_in(x.region)), region, x.rows, x.region)


def surround(x: Features, around: Features) -> Features:
    """x with the table of ``around``, in which the pixels of x are new and the others carried on."""
    if isinstance(x, Tensor) or isinstance(around, Tensor) or around.table is None:
        return x
    where = x.region.index if around.source is None else x.region.rows_in(around.source)
    return replace(x, table=around.table.index_copy(0, where, x.rows.to(around.table.dtype)), source=around.source)


def rows_of(x: Features) -> Tensor:
    """(n, C); all pixels of a map."""
    return map_rows(x) if isinstance(x, Tensor) else x.rows


@overload
def conv(layer: nn.Module, x: Tensor, total: Tensor | None = None, *, relu: Limit = False) -> Tensor: ...


@overload
def conv(layer: nn.Module, x: Features, total: Features | None = None, *, relu: Limit = False) -> Features: ...


def conv(layer: Any, x: Any, total: Any = None, *, relu: Limit = False) -> Any:
    """activation(norm(convolution) [+ a sum]).

    Args:
        layer: a ``detectron2.layers.Conv2d`` of stride 1 where x are pixels, and without an activation of its own.
        total: what is added; without gradients the result takes its place in memory.
        relu: the activation: False for none, True for ReLU, 6.0 for ReLU6.
    """
    maps = isinstance(x, Tensor)
    values = x if maps else x.rows
    if may_fold(values) and not layer.training and folds(layer):
        folded = kept(layer, [layer], lambda: _Folded(layer))
        if maps:
            return folded.dense(x, total, relu=relu)
        added = None if total is None else total.rows
        return Pixels(folded.region(*x.gathered_by(layer.kernel_size, layer.dilation), added, relu=relu), x.region)
    out = _conv_map(layer, x) if maps else _conv_rows(layer, x)
    if total is not None:
        out = out + (total if maps else total.rows)
    out = rectify_(out, limit_of(relu))
    return out if maps else Pixels(out, x.region)


_GEOMETRY = ("stride", "padding", "dilation", "groups")


class _Folded:
    """A convolution with its norm and scale, for evaluation."""

    def __init__(self, layer: Conv2d) -> None:
        weight, bias = fold(layer)
        scale = getattr(layer, "scale", 1.0)
        self._weight, self._bias = weight * scale, bias * scale
        # Not the layer itself, which would then live as long as what is kept for it.
        self._geometry = {name: getattr(layer, name) for name in _GEOMETRY}

    @cached_property
    def dense(self) -> PackedConv | DenseDepthwise:
        if DenseDepthwise.suits(self._weight, **self._geometry):
            return DenseDepthwise(self._weight, self._bias, self._geometry["dilation"])
        return PackedConv(self._weight, self._bias, **self._geometry)

    @cached_property
    def region(self) -> RegionMatrix | GroupedRegionMatrix:
        groups = self._geometry["groups"]
        if groups > 1:
            return GroupedRegionMatrix(self._weight, self._bias, groups)
        return RegionMatrix(self._weight, self._bias)


def _conv_map(layer: Any, x: Tensor) -> Tensor:
    geometry = {name: getattr(layer, name) for name in _GEOMETRY}
    if x.device.type != "cpu" or not DenseDepthwise.suits(layer.weight, **geometry):
        return layer(x)
    out = dense_depthwise(x, layer.weight, layer.dilation)
    out = out if layer.bias is None else out + layer.bias[:, None, None]
    out = out if layer.norm is None else layer.norm(out)
    return out * getattr(layer, "scale", 1.0)


def _conv_rows(layer: Any, x: Pixels) -> Tensor:
    table, taps = x.gathered_by(layer.kernel_size, layer.dilation)
    out = region_conv(table, layer.weight, layer.bias, taps, layer.groups)
    if layer.norm is not None:
        with running_statistics(layer.norm, len(out) <= 1):
            out = layer.norm(out[:, :, None, None])[:, :, 0, 0]
    return out * getattr(layer, "scale", 1.0)


def max_pool(x: Features, kernel: int, dilation: int) -> Features:
    """Pooling of stride 1 that keeps the size of a map."""
    if isinstance(x, Tensor):
        margin = dilation * (kernel // 2)  # more than max_pool2d would pad by itself
        return F.max_pool2d(F.pad(x, (margin,) * 4, value=float("-inf")), kernel, 1, 0, dilation)
    table, taps = x.gathered_by((kernel, kernel), (dilation, dilation))
    assert taps is not None  # as for every kernel of more than one pixel
    return Pixels(region_max_pool(table, taps), x.region)


def drop(x: Features, share: float) -> Features:
    """Dropout, as in training."""
    if not share:
        return x
    return F.dropout(x, share) if isinstance(x, Tensor) else replace(x, rows=F.dropout(x.rows, share))


def cat(parts: Sequence[Any]) -> Features:
    """Channels of all parts, one after another; the parts are all maps or all the same pixels."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts), 1)
    return Pixels(torch.cat([part.rows for part in parts], 1), parts[0].region)


def pixel_cost(module: nn.Module) -> float:
    """Multiply-adds of all convolutions of ``module`` for one pixel, if each of them runs once with stride 1."""
    return float(sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Conv2d)))
