"""Gated MobileNetV2 (Sandler et al. 2018): inverted residual blocks that are sums of groups, as in CDB section 3.1."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.config.applied import notices_keys
from dyn_d2.gating.groups import GroupBranch
from dyn_d2.modeling.shapes import channels_of

from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY

from .base import GatedBackbone
from .block import conv_norm
from .cdb_blocks import GroupSumBlock

# Per stage, one for each power of two in the stride: (expansion E, channels, blocks, stride of the first) of its parts.
_STAGES = (
    ((1, 16, 1, 1),),
    ((6, 24, 2, 2),),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)


def _relu6(x: Tensor) -> Tensor:
    return F.relu6(x, inplace=True)


def scaled(channels: float) -> int:
    """The multiple of 8 next to ``channels``, at least 8 and no more than a tenth below it."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def _inverted(cin: int, hidden: int, cout: int, stride: int, norm, expand: bool = True) -> list[Conv2d]:
    """Convolutions of an inverted residual: 1x1 to ``hidden`` channels, depthwise 3x3, 1x1 to ``cout``."""
    first = [conv_norm(cin, hidden, 1, norm)] if expand else []
    return [*first, conv_norm(hidden, hidden, 3, norm, stride, groups=hidden), conv_norm(hidden, cout, 1, norm)]


class PlainBlock(CNNBlockBase):
    """Something that always runs, under the names that parameters have in blocks with groups: ``groups.0.conv1`` ..."""

    def __init__(self, convs: Sequence[Conv2d], *, activate_last: bool = False) -> None:
        """
        Args:
            convs: run one after another, with ReLU6 between them.
            activate_last: whether ReLU6 follows the last one too.
        """
        stride = math.prod(conv.stride[0] for conv in convs)
        super().__init__(convs[0].in_channels, convs[-1].out_channels, stride)
        self.groups = nn.ModuleList([GroupBranch(convs, _relu6)])
        self._activate_last = activate_last

    def forward(self, x: Tensor) -> Tensor:
        x = self.groups[0](x)
        return _relu6(x) if self._activate_last else x


class InvertedResidualGroups(GroupSumBlock):
    """Id(x) + sum over n of s_n F_n(x), where F_n is an inverted residual of expansion E / N (CDB, section 3.1).

    With one group it is the block of the plain network. Blocks that change size or channels have no Id: were all of
    their groups closed, nothing would be left of the image. The paper is silent about them; here their first group is
    not gated, the others are.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        norm="BN",
        expansion: float = 6,
        groups: int = 2,
        kind: str = "group",
    ) -> None:
        """
        Args:
            stride: of the depthwise convolution.
            norm: anything that ``layers.get_norm`` takes; each group has its own.
            expansion: E, hidden channels of all groups together per input channel.
            groups: N; at least 2 where the block has no Id.
            kind: "group", or "block" for a single group that is a unit of kind "block".
        """
        hidden = max(round(in_channels * expansion / groups), 1)
        branches = [
            GroupBranch(_inverted(in_channels, hidden, out_channels, stride, norm), _relu6) for _ in range(groups)
        ]
        residual = stride == 1 and in_channels == out_channels
        super().__init__(
            in_channels,
            out_channels,
            stride,
            branches,
            kind=kind,
            residual=residual,
            relu=False,
            always_open=0 if residual else 1,
        )


def _stage(parts, channels: int, width_mult: float, norm, kind: str, groups: int) -> list[CNNBlockBase]:
    """The blocks of an entry of ``_STAGES``; those in which nothing can be switched off are plain."""
    blocks: list[CNNBlockBase] = []
    for expansion, plain_channels, count, stride in parts:
        cout = scaled(plain_channels * width_mult)
        for i in range(count):
            step = stride if i == 0 else 1
            residual = step == 1 and channels == cout
            if expansion == 1 or (groups == 1 and not residual):
                blocks.append(PlainBlock(_inverted(channels, channels * expansion, cout, step, norm, expansion > 1)))
            else:
                blocks.append(
                    InvertedResidualGroups(
                        channels, cout, stride=step, norm=norm, expansion=expansion, groups=groups, kind=kind
                    )
                )
            channels = cout
    return blocks


@BACKBONE_REGISTRY.register()
@notices_keys
def build_gated_mobilenetv2_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GatedBackbone:
    """A gated MobileNetV2 of width MODEL.GATED.WIDTH_MULT, from MODEL.GATED, MODEL.RESNETS.{NORM,OUT_FEATURES} and
    MODEL.POLICY.

    MODEL.GATED.UNIT "group": every block is split into MODEL.GATED.GROUPS groups, except for the first, which expands
    nothing. "block": residual blocks are units. Features: stage1 ... stage5 of stride 2 ... 32, and "last", the 1x1
    convolution (1280 channels at width 1) on which the plain network classifies.

    Raises:
        ValueError: a key has a value that cannot be; the message names it.
    """
    gated, norm = cfg.MODEL.GATED, cfg.MODEL.RESNETS.NORM
    if gated.UNIT not in ("block", "group"):
        raise ValueError(f'MODEL.GATED.UNIT is {gated.UNIT!r}: MobileNetV2 has the units "block" and "group".')
    if gated.UNIT == "group" and gated.GROUPS < 1:
        raise ValueError(f"MODEL.GATED.GROUPS is {gated.GROUPS}: a block has at least 1 group.")
    if gated.WIDTH_MULT <= 0:
        raise ValueError(f"MODEL.GATED.WIDTH_MULT is {gated.WIDTH_MULT}: it has to be above 0, e.g. 1.0 or 1.4.")
    groups = gated.GROUPS if gated.UNIT == "group" else 1
    channels = scaled(32 * gated.WIDTH_MULT)
    stem = PlainBlock([conv_norm(channels_of(input_shape), channels, 3, norm, 2)], activate_last=True)
    stages: dict[str, list[CNNBlockBase]] = {}
    for number, parts in enumerate(_STAGES, 1):
        stages[f"stage{number}"] = _stage(parts, channels, gated.WIDTH_MULT, norm, gated.UNIT, groups)
        channels = stages[f"stage{number}"][-1].out_channels
    width = scaled(1280 * max(1.0, gated.WIDTH_MULT))
    stages["last"] = [PlainBlock([conv_norm(channels, width, 1, norm)], activate_last=True)]
    return GatedBackbone.of_keys(cfg, stem, stages)
