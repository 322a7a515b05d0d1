"""Building blocks of convolutional networks."""

from torch import nn

from .batch_norm import FrozenBatchNorm2d


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
