"""Residual blocks whose hidden channels a policy chooses per image (DeepMoE, Wang et al., UAI 2019).

Gates sit inside the block only, after norm and ReLU, where scaling an output channel is the same as scaling the input
channel of the next convolution (Eq. 3.3 to 3.5, Fig. 3.2; see the sources in ``policies/__init__.py``). The residual
trunk is never gated nor widened.
"""

from functools import partial

from torch import Tensor, nn

from dyn_d2.gating import Cost, Router, Unit
from dyn_d2.gating.channels import chain_costs, run_chain, sparse_conv
from dyn_d2.gating.cost import conv_cost
from dyn_d2.gating.execution import running_statistics
from dyn_d2.gating.exporting import is_exporting
from dyn_d2.ops import channel_conv

from detectron2.layers import Conv2d, get_norm

from .block import GatedBlock, conv_norm


def channel_norm(norm, channels: int) -> nn.Module | None:
    """``get_norm``, for layers whose channels are computed one by one.

    Raises:
        ValueError: the norm mixes channels.
    """
    layer = get_norm(norm, channels)
    if layer is not None and not hasattr(layer, "running_mean"):
        raise ValueError(
            f"Norm {norm} ({type(layer).__name__}) mixes channels, so that no channel can be computed without the "
            "others: with channel units use BN, FrozenBN, SyncBN or naiveSyncBN."
        )
    return layer


class _MoEBlock(GatedBlock):
    """ReLU(chain(x) + shortcut(x)), where a policy chooses the channels inside the chain.

    Parameters have the names of Detectron2's blocks, so that its weights fit where ``widen`` is 1.
    """

    CHAIN: tuple[str, ...] = ()
    GATED: tuple[str, ...] = ()
    conv1: Conv2d

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm) -> None:
        super().__init__(in_channels, out_channels, stride)
        self._conv = partial(conv_norm, norm=partial(channel_norm, norm))
        project = in_channels != out_channels or stride != 1
        self.shortcut = self._conv(in_channels, out_channels, 1, stride=stride) if project else None

    def units(self, stage: int) -> list[Unit]:
        return [
            Unit(f"{self.name}.{name}", "channel", self.in_channels, getattr(self, name).out_channels, stage)
            for name in self.GATED
        ]

    def train(self, mode: bool = True) -> "_MoEBlock":
        """As usual; before evaluation on the CPU also compiles what that needs, so that no forward pass has to."""
        if not mode and self.conv1.weight.device.type == "cpu":
            channel_conv.load()
        return super().train(mode)

    def forward(self, x: Tensor, router: Router) -> Tensor:
        gates = [router.decide(x).gate if name in self.GATED else None for name in self.CHAIN]
        layers = [getattr(self, name) for name in self.CHAIN]
        dense, executed = chain_costs(layers, gates, x.shape[-2:])
        router.trace.costs.append(Cost(self.name, dense, executed, executed))
        if self.shortcut is not None:
            router.trace.add_fixed(f"{self.name}.shortcut", conv_cost(self.shortcut, *x.shape[-2:])[0], x)
        if not self.training and not is_exporting():
            # A projection is nobody else's; x is not read again after the chain's first layer.
            overwrite = router.overwrite or self.shortcut is not None
            return run_chain(x, layers, gates, self._skip_sparse(x), sparse=True, overwrite=overwrite)
        pixels = -(-x.shape[2] // self.stride) * -(-x.shape[3] // self.stride)
        with running_statistics(self, len(x) * pixels <= 1):  # batch norm needs more than one value
            return run_chain(x, layers, gates, x if self.shortcut is None else self.shortcut(x), sparse=False)

    def _skip_sparse(self, x: Tensor) -> Tensor:
        # All channels, but by the operator of the chain: it does not lay out its weights anew at each call.
        return x if self.shortcut is None else sparse_conv(x, self.shortcut, self.shortcut.norm, None, None, relu=False)


class MoEBasicBlock(_MoEBlock):
    """Two 3x3 convolutions, the channels between them gated: for ResNet-18, 34 and 6n+2."""

    CHAIN, GATED = ("conv1", "conv2"), ("conv1",)

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, norm="BN", widen: float = 1.0, dilation: int = 1
    ) -> None:
        """
        Args:
            stride: of the first convolution.
            norm: anything that ``layers.get_norm`` takes, as long as it treats each channel by itself.
            widen: how many times wider the gated part is than in the plain block (r in Sec. 3.3).
            dilation: of both convolutions.
        """
        super().__init__(in_channels, out_channels, stride, norm)
        hidden = round(widen * out_channels)
        self.conv1 = self._conv(in_channels, hidden, 3, stride=stride, dilation=dilation)
        self.conv2 = self._conv(hidden, out_channels, 3, dilation=dilation)


class MoEBottleneckA(_MoEBlock):
    """1x1, 3x3 and 1x1 convolutions with gates after both hidden layers, both widened."""

    CHAIN: tuple[str, ...] = ("conv1", "conv2", "conv3")
    GATED: tuple[str, ...] = ("conv1", "conv2")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        norm="BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
        widen: float = 1.0,
    ) -> None:
        """
        Args:
            bottleneck_channels: of the hidden layers of the plain block.
            stride_in_1x1: whether the first convolution has the stride, else the 3x3 one.
            dilation: of the 3x3 convolution.
            norm, widen: as in :class:`MoEBasicBlock`.
        """
        super().__init__(in_channels, out_channels, stride, norm)
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        middle = round(widen * bottleneck_channels)
        first = middle if "conv1" in self.GATED else bottleneck_channels
        self.conv1 = self._conv(in_channels, first, 1, stride=stride_1x1)
        self.conv2 = self._conv(first, middle, 3, stride=stride_3x3, dilation=dilation)
        self.conv3 = self._conv(middle, out_channels, 1)


class MoEBottleneckB(MoEBottleneckA):
    """1x1, 3x3 and 1x1 convolutions with one gate, after the 3x3 convolution, whose output alone is widened: needs less
    memory than bottleneck A. Arguments are the same."""

    GATED = ("conv2",)
