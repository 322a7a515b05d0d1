"""Building blocks of convolutional networks."""

from collections.abc import Callable

from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn

from .batch_norm import FrozenBatchNorm2d, get_norm
from .wrappers import Conv2d


class CNNBlockBase(nn.Module):
    """A block whose input and output are NCHW tensors; ``forward`` keeps to the declared channels and stride."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride

    def freeze(self) -> "CNNBlockBase":
        """Stop training of this block: no gradients, and batch norms that keep their statistics."""
        self.requires_grad_(False)
        return FrozenBatchNorm2d.convert_frozen_batchnorm(self)


class DepthwiseSeparableConv2d(nn.Module):
    """A k x k convolution of each channel by itself, then a 1 x 1 convolution over channels.

    Xception has ``norm2``/``activation2`` only, MobileNet both pairs. Norms are names or callables (``get_norm``).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        padding: int = 1,
        dilation: int = 1,
        *,
        norm1: str | Callable | None = None,
        activation1: Callable | None = None,
        norm2: str | Callable | None = None,
        activation2: Callable | None = None,
    ):
        super().__init__()
        spatial = {"kernel_size": kernel_size, "padding": padding, "dilation": dilation, "groups": in_channels}
        first = {"bias": not norm1, "norm": get_norm(norm1, in_channels), "activation": activation1}
        second = {"bias": not norm2, "norm": get_norm(norm2, out_channels), "activation": activation2}
        self.depthwise = Conv2d(in_channels, in_channels, **spatial, **first)
        self.pointwise = Conv2d(in_channels, out_channels, kernel_size=1, **second)
        c2_msra_fill(self.depthwise)
        c2_msra_fill(self.pointwise)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))
