"""torch.nn modules and functions under Detectron2's names, with the few features that heads rely on."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.layers.batch_norm import FrozenBatchNorm2d

ConvTranspose2d = nn.ConvTranspose2d
BatchNorm2d = nn.BatchNorm2d
Linear = nn.Linear
interpolate = F.interpolate


class Conv2d(nn.Conv2d):
    """Convolution, then an optional normalisation layer, then an optional activation.

    Args:
        norm: module applied to the output (a sub-module named ``norm``).
        activation: callable applied last.
        args, kwargs: those of :class:`torch.nn.Conv2d`.
    """

    def __init__(self, *args, norm: nn.Module | None = None, activation: Callable | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == 0 and isinstance(self.norm, nn.SyncBatchNorm):
            raise ValueError("SyncBatchNorm cannot train on an empty input; use norm 'naiveSyncBN_N' or 'GN' here.")
        if isinstance(self.norm, FrozenBatchNorm2d) and self.weight.requires_grad and torch.is_grad_enabled():
            # A fixed affine map of the output is one of the weight: training saves a pass over the feature map in
            # each direction. In evaluation it would only round differently.
            scale, shift = self.norm.affine_map()
            bias = shift if self.bias is None else shift + self.bias * scale
            x = self._conv_forward(x, self.weight * scale.reshape(-1, 1, 1, 1), bias)
        else:
            x = super().forward(x)
            x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """``torch.cat`` that returns a lone tensor itself instead of a copy."""
    if not isinstance(tensors, (list, tuple)):
        raise TypeError(f"cat takes a list or tuple of tensors, not {type(tensors).__name__}.")
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def cross_entropy(input: Tensor, target: Tensor, *, reduction: str = "mean", **kwargs) -> Tensor:
    """``F.cross_entropy`` whose mean over no elements is 0, still connected to ``input``, where torch gives NaN."""
    if reduction == "mean" and target.numel() == 0:
        return input.sum() * 0.0
    return F.cross_entropy(input, target, reduction=reduction, **kwargs)


def nonzero_tuple(x: Tensor) -> tuple[Tensor, ...]:
    """One index vector per dimension of ``x``."""
    return x.nonzero(as_tuple=True)
