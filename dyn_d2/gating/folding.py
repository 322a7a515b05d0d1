"""Convolutions of evaluation, with their batch norm folded in, made once and kept until a parameter changes."""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, getitem, is_
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dyn_d2.ops.packed_conv import PackedConv

from detectron2.layers import Conv2d

from .cost import geometry
from .exporting import is_exporting
from .norms import has_statistics, running_norm


def may_fold(x: Tensor) -> bool:
    """Whether convolutions on ``x`` may run folded: no gradient is wanted, and arithmetic is plain."""
    return not is_exporting() and not torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type)


def folds(conv: Conv2d) -> bool:
    """Whether the convolution has no norm, or one with running statistics."""
    return conv.norm is None or has_statistics(conv.norm)


def fold(conv: Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the batch norm that follows it, in evaluation."""
    bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
    if conv.norm is None:
        return conv.weight, bias
    norm = running_norm(conv.norm)
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = 0 if norm.bias is None else norm.bias
    return conv.weight * scale.reshape(-1, 1, 1, 1), (bias - norm.running_mean) * scale + shift


def folded_convs(owner: nn.Module, convs: Sequence[Conv2d], x: Tensor) -> list[PackedConv] | None:
    """Convolutions of ``owner`` with their norms, for evaluation; None where they do not fold."""
    if not may_fold(x):
        return None
    return kept(owner, convs, lambda: [_pack(conv) for conv in convs] if all(map(folds, convs)) else None)


def folded_conv(conv: Conv2d, x: Tensor) -> PackedConv | None:
    """The convolution with its norm, for evaluation; None where that does not fold."""
    folded = folded_convs(conv, [conv], x)
    return folded[0] if folded else None


def _pack(conv: Conv2d) -> PackedConv:
    stride, padding, dilation = geometry(conv)
    return PackedConv(*fold(conv), stride=stride, padding=padding, dilation=dilation, groups=conv.groups)


def kept(owner: nn.Module, layers: Sequence[nn.Module], make: Callable[[], Any]) -> Any:
    """What ``make`` gives, kept for ``owner`` until a parameter, a buffer or the norm of one of ``layers`` changes."""
    if owner in _kept:
        watch, value = _kept[owner]
        if watch.unchanged():
            return value
    value = make()
    _kept[owner] = _Watch(layers), value
    return value


_kept: WeakKeyDictionary[nn.Module, tuple["_Watch", Any]] = WeakKeyDictionary()


class _Watch:
    """Tells whether anything of some layers changed since it was made: which norm and which tensor is in each place,
    where its values lie, and how often they were written."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        norms: list[nn.Module | None] = [getattr(layer, "norm", None) for layer in layers]
        places = [
            (store, name)
            for part in (*layers, *norms)
            if part is not None
            for store in (part._parameters, part._buffers)
            for name, tensor in store.items()
            if tensor is not None
        ]
        # Batch norm changes its statistics without a trace, but counts its batches. Looked at in each pass: in bulk.
        self._stores: list[Mapping[str, Any]] = [store for store, _ in places]
        self._names = [name for _, name in places]
        self._modules, self._norms = [layer._modules for layer in layers], norms
        self._stamp = self._look()

    def _look(self) -> tuple[list[int], list[int]]:
        tensors: list[Tensor] = list(map(getitem, self._stores, self._names))
        try:
            versions = list(map(attrgetter("_version"), tensors))
        except RuntimeError:  # tensors made in inference mode have none
            versions = [0 if tensor.is_inference() else tensor._version for tensor in tensors]
        return list(map(Tensor.data_ptr, tensors)), versions

    def unchanged(self) -> bool:
        norms = [modules.get("norm") for modules in self._modules]
        return all(map(is_, norms, self._norms)) and self._look() == self._stamp
