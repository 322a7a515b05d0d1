"""Norms that treat each channel by itself, with statistics that do not depend on the batch in evaluation."""

from typing import Protocol, TypeGuard

from torch import Tensor, nn


class RunningNorm(Protocol):
    """What batch norms of all kinds have, those with constant statistics included; (C,) tensors."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    eps: float


def has_statistics(norm: nn.Module | None) -> TypeGuard[RunningNorm]:
    """Whether ``norm`` has running statistics; layer and group norm have not."""
    return getattr(norm, "running_mean", None) is not None


def running_norm(norm: nn.Module) -> RunningNorm:
    """``norm`` itself.

    Raises:
        ValueError: it has no running statistics.
    """
    if not has_statistics(norm):
        raise ValueError(f"{type(norm).__name__} has no running statistics: use a batch norm or a frozen one.")
    return norm
