"""Frozen convolutions of timm's models that do the work of the constant batch norm behind them.

A constant batch norm is a factor and a summand for each channel, which the weights and the bias of the convolution
before it can hold. Names and values of the state dict stay; the folded weights are made of it when they are needed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .timm_models import TimmModel
from .timm_norms import FrozenBatchNormAct2d
from .timm_same import pad_as_tensorflow

# Between what bounds the check of ``fold_norms`` draws the numbers of a batch norm.
_STATISTICS = {"weight": (0.5, 1.5), "bias": (-0.2, 0.2), "running_mean": (-0.2, 0.2), "running_var": (0.5, 2.0)}


class FoldedConv2d(nn.Conv2d):
    """A convolution with the weights of ``conv``, which gives what the batch norm behind it would.

    As long as its weights are frozen; once they learn it is a plain convolution, and the batch norm does its work.
    """

    def __init__(self, conv: Any, norm: FrozenBatchNormAct2d, same: bool) -> None:
        """
        Args:
            conv: an ``nn.Conv2d``.
            norm: the layer behind it, which keeps its parameters, its activation and its place.
            same: whether ``conv`` pads as TensorFlow does, as much as the image's size needs.
        """
        super().__init__(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
            conv.groups, conv.bias is not None, conv.padding_mode, device="meta",
        )  # fmt: skip
        self.weight, self.bias = conv.weight, conv.bias
        self.same = same
        self._norm = (norm,)  # not a part of this module
        self._made_of: tuple = ()
        self._folded: tuple[Tensor, Tensor] | None = None
        norm.folded = (self,)

    @property
    def folds(self) -> bool:
        """Whether the batch norm has nothing left to do."""
        return not self.weight.requires_grad and (self.bias is None or not self.bias.requires_grad)

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self._weights(input) if self.folds else (self.weight, self.bias)
        if self.same:
            input = pad_as_tensorflow(input, self)
            return F.conv2d(input, weight, bias, self.stride, (0, 0), self.dilation, self.groups)
        return self._conv_forward(input, weight, bias)

    def _weights(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """The folded ones, in the type that autocast would give them; made anew where anything has changed."""
        norm, kind = self._norm[0], input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.weight.dtype
        if torch.compiler.is_compiling():  # a traced tensor has no address
            return self._fold(norm, dtype)
        parts = (self.weight, self.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var)
        made_of = (dtype, *((part.data_ptr(), part._version, part.device) for part in parts if part is not None))
        if self._folded is None or made_of != self._made_of:
            self._made_of, self._folded = made_of, self._fold(norm, dtype)
        return self._folded

    def _fold(self, norm: FrozenBatchNormAct2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            shift = norm.bias - norm.running_mean * scale
            weight = (self.weight * scale[:, None, None, None]).to(dtype, memory_format=torch.channels_last)
            bias = shift if self.bias is None else shift + self.bias * scale
        return weight, bias.to(dtype)


def fold_norms(model: TimmModel) -> int:
    """Fold the constant batch norms of a model, in place, into the frozen convolutions before them.

    Layers count as one behind the other where they stand so in their module, which is checked: where the features of
    random images change by more than rounding, all stays as it was. The check is made with random statistics, since
    those of a network whose weights are loaded later are the identity, which any order of layers passes.

    Returns:
        how many were folded.
    """
    from timm.layers import Conv2dSame

    pairs = []
    for parent in model.module.modules():
        layers = list(parent.named_children())
        for (name, conv), (_, norm) in zip(layers, layers[1:], strict=False):
            if not (isinstance(conv, nn.Conv2d) and isinstance(norm, FrozenBatchNormAct2d)):
                continue
            if type(conv) in (nn.Conv2d, Conv2dSame) and _fits(conv, norm):
                pairs.append((parent, name, conv, norm))
    if not pairs:
        return 0
    with torch.no_grad(), _random_statistics([norm for *_, norm in pairs]):
        before = model.trial()
        for parent, name, conv, norm in pairs:
            setattr(parent, name, FoldedConv2d(conv, norm, isinstance(conv, Conv2dSame)))
        after = model.trial()
    if all(_close(after[name], value) for name, value in before.items()):
        return len(pairs)
    for parent, name, conv, norm in pairs:
        setattr(parent, name, conv)
        norm.folded = ()
    return 0


@contextmanager
def _random_statistics(norms: Sequence[FrozenBatchNormAct2d]) -> Iterator[None]:
    """Within, no norm is the identity or closes its channels; the caller's random numbers stay as they are."""
    generator = torch.Generator().manual_seed(0)
    own = [{name: value.clone() for name, value in norm.named_buffers(recurse=False)} for norm in norms]
    try:
        for norm in norms:
            for name, (low, high) in _STATISTICS.items():
                value = norm.get_buffer(name)
                value.copy_(low + (high - low) * torch.rand(value.shape, generator=generator))
        yield
    finally:
        for norm, values in zip(norms, own, strict=True):
            for name, value in norm.named_buffers(recurse=False):
                value.copy_(values[name])


def _fits(conv: nn.Conv2d, norm: FrozenBatchNormAct2d) -> bool:
    return not conv.weight.requires_grad and conv.out_channels == norm.num_features


def _close(value: Tensor, wanted: Tensor) -> bool:
    scale = wanted.abs().max().clamp(min=1e-12)
    return bool(((value - wanted).abs().max() / scale) < 1e-4)
