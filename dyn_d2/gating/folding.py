"""Convolutions of evaluation, with their batch norm folded in, made once and kept until a parameter changes."""

from collections.abc import Callable, Sequence
from operator import attrgetter, getitem, is_
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dyn_d2.ops.packed_conv import PackedConv


def may_fold(x: Tensor) -> bool:
    """Whether convolutions on ``x`` may run folded: no gradient is wanted, and arithmetic is plain."""
    return not torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type)


def folds(conv: nn.Conv2d) -> bool:
    """Whether the norm of a ``detectron2.layers.Conv2d`` has running statistics (layer and group norm have not)."""
    return conv.norm is None or getattr(conv.norm, "running_mean", None) is not None


def fold(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the batch norm that follows it, in evaluation."""
    norm, bias = conv.norm, conv.bias
    bias = conv.weight.new_zeros(conv.out_channels) if bias is None else bias
    if norm is None:
        return conv.weight, bias
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = 0 if norm.bias is None else norm.bias
    return conv.weight * scale.reshape(-1, 1, 1, 1), (bias - norm.running_mean) * scale + shift


def folded_convs(owner: nn.Module, convs: Sequence[nn.Conv2d], x: Tensor) -> list[PackedConv] | None:
    """Convolutions of ``owner`` with their norms, for evaluation; None where they do not fold."""
    if not may_fold(x):
        return None
    return kept(owner, convs, lambda: [_pack(conv) for conv in convs] if all(map(folds, convs)) else None)


def folded_conv(conv: nn.Conv2d, x: Tensor) -> PackedConv | None:
    """The convolution with its norm, for evaluation; None where that does not fold."""
    folded = folded_convs(conv, [conv], x)
    return folded[0] if folded else None


def _pack(conv: nn.Conv2d) -> PackedConv:
    geometry = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
    return PackedConv(*fold(conv), **geometry, groups=conv.groups)


def kept(owner: nn.Module, convs: Sequence[nn.Conv2d], make: Callable[[], Any]) -> Any:
    """What ``make`` gives, kept for ``owner`` until a parameter, a buffer or the norm of one of ``convs`` changes."""
    if owner in _kept:
        watch, value = _kept[owner]
        if watch.unchanged():
            return value
    value = make()
    _kept[owner] = _Watch(convs), value
    return value


_kept: WeakKeyDictionary[nn.Module, tuple["_Watch", Any]] = WeakKeyDictionary()


class _Watch:
    """Tells whether anything of some convolutions changed since it was made: which norm and which tensor is in each
    place, where its values lie, and how often they were written."""

    def __init__(self, convs: Sequence[nn.Conv2d]) -> None:
        norms = [conv.norm for conv in convs]
        places = [
            (store, name)
            for part in (*convs, *norms)
            if part is not None
            for store in (part._parameters, part._buffers)
            for name, tensor in store.items()
            if tensor is not None
        ]
        # Batch norm changes its statistics without a trace, but counts its batches. Looked at in each pass: in bulk.
        self._stores, self._names = zip(*places, strict=True)
        self._modules, self._norms = [conv._modules for conv in convs], norms
        self._stamp = self._look()

    def _look(self) -> tuple[list[int], list[int]]:
        tensors = list(map(getitem, self._stores, self._names))
        try:
            versions = list(map(attrgetter("_version"), tensors))
        except RuntimeError:  # tensors made in inference mode have none
            versions = [0 if tensor.is_inference() else tensor._version for tensor in tensors]
        return list(map(Tensor.data_ptr, tensors)), versions

    def unchanged(self) -> bool:
        norms = [modules.get("norm") for modules in self._modules]
        return all(map(is_, norms, self._norms)) and self._look() == self._stamp
