"""Batch norms of timm's models, some of which hold the activation after them, as constants."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dyn_d2.modeling.freeze import freeze_whole

from detectron2.layers import FrozenBatchNorm2d

NORMS = ("FrozenBN", "BN", "SyncBN")
Network = TypeVar("Network", bound=nn.Module)


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """A batch norm that is constant, and the activation that timm may keep in the same layer.

    Attributes:
        folded: the convolution that may do the work of the batch norm, alone in a tuple; () where there is none.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    folded: tuple[Any, ...] = ()

    def __init__(self, num_features: int, eps: float, drop: nn.Module, act: nn.Module) -> None:
        super().__init__(num_features, eps)
        self.drop, self.act = drop, act

    def forward(self, x: Tensor) -> Tensor:
        done = bool(self.folded) and self.folded[0].folds
        return self.act(self.drop(x if done else super().forward(x)))


def _frozen(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> FrozenBatchNorm2d:
    assert norm.running_mean is not None
    drop, act = getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity())
    frozen = FrozenBatchNormAct2d(norm.num_features, norm.eps, drop, act)
    if norm.affine:
        frozen.weight, frozen.bias = norm.weight.detach().clone(), norm.bias.detach().clone()
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        setattr(frozen, name, getattr(norm, name))
    return frozen.to(norm.running_mean.device).train(norm.training)


def freeze_norms(model: nn.Module, chosen: Callable[[str], bool] = lambda name: True) -> None:
    """Make the batch norms of ``model`` constants, in place; ``chosen`` tells which, by name."""
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, _BatchNorm) or not chosen(name):
            continue
        if isinstance(layer, nn.BatchNorm2d | nn.SyncBatchNorm) and layer.running_mean is not None:
            model.set_submodule(name, _frozen(layer))
        else:  # of one dimension
            freeze_whole(layer)


def convert_norms(model: Network, norm: str) -> Network:
    """``model`` with its batch norms as ``norm`` says.

    Raises:
        ValueError: ``norm`` is none of ``NORMS``.
    """
    if norm not in NORMS:
        raise ValueError(
            f"MODEL.TIMM.NORM is {norm!r}: use one of {', '.join(NORMS)}. It is about batch norms; other norms stay as "
            "the model has them."
        )
    if norm == "FrozenBN":
        freeze_norms(model)
    if norm == "SyncBN":
        from timm.layers import convert_sync_batchnorm

        model = convert_sync_batchnorm(model)
    return model
