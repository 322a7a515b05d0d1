"""oneDNN, which torch reaches by operators that not every build has, and the activations that it knows."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

Limit = bool | float
"""Which rectifier follows a convolution: False for none, True for ReLU, 6.0 for ReLU6."""


def has_operators(*names: str) -> bool:
    """Whether oneDNN can be used, and torch has these operators in ``torch.ops.mkldnn``."""
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


def limit_of(relu: Limit) -> float | None:
    """The largest value that the rectifier lets pass; None where there is none."""
    return None if relu is False else math.inf if relu is True else float(relu)


def pointwise(limit: float | None) -> tuple[str, list[float]]:
    """oneDNN's name and numbers of the rectifier."""
    if limit is None:
        return "none", []
    return ("relu", []) if math.isinf(limit) else ("hardtanh", [0.0, limit])


def rectify_(x: Tensor, limit: float | None) -> Tensor:
    """The rectifier, in place."""
    if limit is None:
        return x
    # Of clamp the gradient takes four passes, of hardtanh one.
    return x.relu_() if math.isinf(limit) else F.hardtanh(x, 0.0, limit, inplace=True)
