"""What the blocks of a gated backbone have in common."""

import fvcore.nn.weight_init as weight_init
from torch import Tensor

from dyn_d2.gating import Router, Unit
from dyn_d2.gating.cost import conv_cost
from dyn_d2.gating.execution import running_statistics
from dyn_d2.gating.exporting import is_exporting
from dyn_d2.gating.folding import folded_conv

from detectron2.layers import CNNBlockBase, Conv2d, get_norm


class GatedBlock(CNNBlockBase):
    """A block of a backbone parts of which a policy can switch off, per image.

    Attributes:
        name: of the block in its backbone, e.g. "res3.1"; set by the backbone.
    """

    name: str = ""

    def units(self, stage: int) -> list[Unit]:
        """What can be switched off, in the order in which ``forward`` asks the router; ``stage`` counts from 0."""
        raise NotImplementedError

    def forward(self, x: Tensor, router: Router) -> Tensor:
        """
        Args:
            x: (N, in_channels, H, W).
            router: gives the decisions and takes down the costs.

        Returns:
            (N, out_channels, H / stride, W / stride). In evaluation nothing that was decided away is computed.
        """
        raise NotImplementedError


def conv_norm(cin: int, cout: int, kernel: int, norm, stride: int = 1, dilation: int = 1, groups: int = 1) -> Conv2d:
    """A convolution without bias that keeps the size of its map (divided by ``stride``), and its norm."""
    conv = Conv2d(
        cin,
        cout,
        kernel_size=kernel,
        stride=stride,
        padding=dilation * (kernel // 2),
        dilation=dilation,
        groups=groups,
        bias=False,
        norm=get_norm(norm, cout),
    )
    weight_init.c2_msra_fill(conv)
    return conv


def project(shortcut: Conv2d, x: Tensor) -> Tensor:
    """The projection of a skip path; in evaluation with its norm folded in."""
    if not shortcut.training and (folded := folded_conv(shortcut, x)):
        return folded(x)
    if is_exporting():
        return shortcut(x)
    _, height, width = conv_cost(shortcut, *x.shape[-2:])
    with running_statistics(shortcut, len(x) * height * width <= 1):
        return shortcut(x)
