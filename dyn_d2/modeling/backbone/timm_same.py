"""Padding as TensorFlow has it ("SAME") by whole numbers alone.

timm rounds a quotient up, which a graph for any size nests with each stride until its sizes can no longer be reasoned
about: exporting a detector took ten minutes and more. Where a side is known to be a multiple of the stride, this is a
number.
"""

from torch import Tensor, nn
from torch.nn import functional as F


def pad_as_tensorflow(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Features (N, C, H, W), padded with zeros so that a convolution without padding has ceil(side / stride) places;
    what is odd goes down and right."""
    rows, columns = (_missing(x.shape[2 + i], conv.kernel_size[i], conv.stride[i], conv.dilation[i]) for i in range(2))
    top, left = rows // 2, columns // 2
    return F.pad(x, (left, columns - left, top, rows - top))


def _missing(side: int, kernel: int, stride: int, dilation: int) -> int:
    beyond = dilation * (kernel - 1) + 1 - stride  # what the last place needs where the stride divides the side
    missing = beyond + (stride - side % stride) % stride
    return missing if beyond >= 0 else max(missing, 0)


class SameConv2d(nn.Conv2d):
    """In place of timm's ``Conv2dSame``, whose attributes it has."""

    def forward(self, x: Tensor) -> Tensor:
        padded = pad_as_tensorflow(x, self)
        return F.conv2d(padded, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


def use_whole_numbers(model: nn.Module) -> None:
    """Make timm's ``Conv2dSame`` of a model ``SameConv2d``, in place."""
    for layer in model.modules():
        if type(layer).__name__ == "Conv2dSame":
            layer.__class__ = SameConv2d
