"""What gates are built of: pooling that does not see padding, batch norm for tiny maps, checks of keys."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ValidArea(NamedTuple):
    """Which part of a padded batch is image.

    Attributes:
        sizes: int64 (N, 2), height and width of each image, on the device of the batch.
        padded: int64 (2,), height and width of the padded batch.
    """

    sizes: Tensor
    padded: Tensor

    def mask(self, height: int, width: int) -> Tensor:
        """bool (N, 1, height, width) for a feature map of that size: positions that hold some of the image."""
        extent = torch.tensor([height, width], device=self.sizes.device)
        inside = -(-self.sizes * extent // self.padded)
        rows = torch.arange(height, device=self.sizes.device) < inside[:, :1]
        columns = torch.arange(width, device=self.sizes.device) < inside[:, 1:]
        return (rows[:, :, None] & columns[:, None, :])[:, None]


def valid_area(images: Tensor, image_sizes: Sequence[tuple[int, int]] | None) -> ValidArea | None:
    """The area of each image in the padded batch ``images`` (N, C, H, W); None where nothing is padded."""
    padded = tuple(images.shape[-2:])
    if image_sizes is None or all(tuple(size) == padded for size in image_sizes):
        return None
    return ValidArea(
        torch.tensor([list(size) for size in image_sizes], device=images.device),
        torch.tensor(padded, device=images.device),
    )


def pool_valid(features: Tensor, valid: ValidArea | None) -> Tensor:
    """Global average pooling over the image alone: a decision does not depend on how far batch mates made it be padded.

    Args:
        features: (N, C, H, W), of any stride.
        valid: of the batch; None to pool over everything.

    Returns:
        float32 (N, C).
    """
    if valid is None:
        return features.mean((2, 3), dtype=torch.float32)
    mask = valid.mask(*features.shape[-2:])
    total = torch.where(mask, features, 0).sum((2, 3), dtype=torch.float32)
    return total / mask.sum((2, 3)).clamp(min=1)


def zero_padding(features: Tensor, valid: ValidArea | None) -> Tensor:
    """``features`` with zeros outside of the images: what a convolution sees around an image that is not padded."""
    return features if valid is None else torch.where(valid.mask(*features.shape[-2:]), features, 0)


class GateNorm(nn.BatchNorm2d):
    """Batch norm that uses its running statistics in training too where there is no more than one value a channel, as
    for a pooled feature of a single image."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() <= x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def apply_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """``layer`` on ``x`` without autocast, result in float32: half precision would round probabilities to 0 and 1."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.to(layer.weight.dtype)).float()


def check_rate(key: str, rate: float) -> float:
    """``rate``, the value of MODEL.POLICY.``key``.

    Raises:
        ValueError: it is not in (0, 1].
    """
    if not 0 < rate <= 1:
        raise ValueError(f"MODEL.POLICY.{key} is {rate}: a rate of execution lies in (0, 1].")
    return float(rate)


def check_threshold(threshold: float) -> float:
    """``threshold``, the value of MODEL.POLICY.THRESHOLD.

    Raises:
        ValueError: it is not in (0, 1).
    """
    if not 0 < threshold < 1:
        raise ValueError(f"MODEL.POLICY.THRESHOLD is {threshold}: it is compared with probabilities, so in (0, 1).")
    return float(threshold)


def check_positive(key: str, value: float) -> float:
    """``value``, the value of MODEL.POLICY.``key``.

    Raises:
        ValueError: it is not positive.
    """
    if not value > 0:
        raise ValueError(f"MODEL.POLICY.{key} is {value}: it has to be positive.")
    return float(value)


def check_choice(key: str, value: str, choices: Sequence[str]) -> str:
    """``value``, the value of MODEL.POLICY.``key``.

    Raises:
        ValueError: it is none of ``choices``.
    """
    if value not in choices:
        raise ValueError(f"MODEL.POLICY.{key} is {value!r}: use one of {', '.join(map(repr, choices))}.")
    return value
