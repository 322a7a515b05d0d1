"""Convolutions with fixed weights, which oneDNN wants in a layout of its own.

torch's ``conv2d`` lays weights out anew in each call, which takes longer than the convolution where images are few
or small. Here that is done once; bias, a sum and ReLU are part of the same pass over the memory.
"""

from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from dyn_d2.ops.onednn import Limit, has_operators, limit_of, pointwise, rectify_


def _available() -> bool:
    return has_operators("_reorder_convolution_weight", "_convolution_pointwise", "_convolution_pointwise_")


class PackedConv:
    """activation(convolution + bias [+ a sum]) with the weights as they are now; for inference, without gradients.

    On a CPU in float32 oneDNN does it with packed weights from the second map of a size on, as the layout depends on
    the size: one for another size can be a hundred times slower. The first map, other devices and types, and a torch
    without oneDNN, are served by ``conv2d`` and what comes after it.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        *,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int = 1,
    ) -> None:
        """
        Args:
            weight: (C', C / groups, kh, kw), as ``conv2d`` takes it.
            bias: (C',).
            stride, padding, dilation, groups: as of ``conv2d``.
        """
        self._packs = weight.device.type == "cpu" and weight.dtype == torch.float32 and _available()
        self._weight, self._bias = weight.detach(), bias.detach()
        self._stride, self._padding, self._dilation = list(stride), list(padding), list(dilation)
        self._groups = groups
        self._size: torch.Size | None = None  # of the last map; what packed weights are for

    def __call__(self, x: Tensor, total: Tensor | None = None, *, relu: Limit = False) -> Tensor:
        """
        Args:
            x: (N, C, H, W).
            total: (N, C', H', W'), to which the result is added before the activation, in place.
            relu: the activation: False for none, True for ReLU, 6.0 for ReLU6.

        Returns:
            (N, C', H', W'); ``total`` itself if that is given.
        """
        limit = limit_of(relu)
        if self._packs:
            x = x.contiguous(memory_format=torch.channels_last)
            if self._pack(x) and (total is None or total.is_contiguous(memory_format=torch.channels_last)):
                return self._run_packed(x, total, limit)
        weight = self._weight.to_dense() if self._weight.is_mkldnn else self._weight
        out = F.conv2d(x, weight, self._bias, self._stride, self._padding, self._dilation, self._groups)
        return rectify_(out if total is None else total.add_(out), limit)

    def _pack(self, x: Tensor) -> bool:
        """Whether the weights are packed for maps of the size of x; they are if the last map had it too."""
        if not len(x) or self._size != x.shape[2:]:
            self._size = x.shape[2:]
            self._weight = self._weight.to_dense() if self._weight.is_mkldnn else self._weight
            return False
        if not self._weight.is_mkldnn:
            self._weight = torch.ops.mkldnn._reorder_convolution_weight(
                self._weight, self._padding, self._stride, self._dilation, self._groups, list(x.shape)
            )
        return True

    def _run_packed(self, x: Tensor, total: Tensor | None, limit: float | None) -> Tensor:
        layer = self._weight, self._bias, self._padding, self._stride, self._dilation, self._groups
        if total is None:
            return torch.ops.mkldnn._convolution_pointwise(x, *layer, *pointwise(limit), "")
        if limit is not None and limit < inf:
            return rectify_(torch.ops.mkldnn._convolution_pointwise_(total, x, *layer, "add", 1.0, None, [], ""), limit)
        relu = None if limit is None else "relu"
        return torch.ops.mkldnn._convolution_pointwise_(total, x, *layer, "add", 1.0, relu, [], "")


if _available():  # so that torch's FlopCounterMode sees them

    @register_flop_formula(torch.ops.mkldnn._convolution_pointwise)
    def _flops(x: list[int], weight: list[int], *_: Any, out_shape: list[int], **__: Any) -> int:
        return conv_flop_count(x, weight, out_shape)

    @register_flop_formula(torch.ops.mkldnn._convolution_pointwise_)
    def _flops_of_sum(
        total: list[int], x: list[int], weight: list[int], *_: Any, out_shape: list[int], **__: Any
    ) -> int:
        return conv_flop_count(x, weight, out_shape)
