"""Gated ResNets: Detectron2's residual networks whose blocks, groups or channels a policy switches off per image.

SkipNet (Wang et al., Learning Dynamic Routing in Convolutional Networks): the output of a block is G F + (1 - G) S,
where F is the block with its final ReLU and S its bare skip path. Names and shapes of parameters are Detectron2's, so
that weights of plain ResNets load.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from dyn_d2.config.applied import notices_keys
from dyn_d2.gating import Router, Unit
from dyn_d2.gating.cost import chain_cost, conv_cost, unit_costs
from dyn_d2.gating.execution import run_block
from dyn_d2.gating.folding import folded_conv, folded_convs
from dyn_d2.modeling.shapes import channels_of

from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock

from .base import GatedBackbone
from .block import GatedBlock, project

BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class FoldedStem(BasicStem):
    """ResNet's stem, in evaluation with its batch norm folded in, as the blocks after it have theirs."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training or (folded := folded_conv(self.conv1, x)) is None:
            return super().forward(x)
        return F.max_pool2d(folded(x, relu=True), kernel_size=3, stride=2, padding=1)


class _Residual(CNNBlockBase):
    """A residual block of Detectron2, to be inherited from before that block: in evaluation its norms are folded in."""

    conv1: Conv2d
    conv2: Conv2d
    shortcut: Conv2d | None

    def _convs(self) -> list[Conv2d]:
        third = getattr(self, "conv3", None)
        return [self.conv1, self.conv2, *([] if third is None else [third])]

    def _fused(self, x: Tensor) -> Callable[[Tensor, Tensor], Tensor] | None:
        """(x, skip) -> ReLU(branch(x) + skip), in place of skip; None where the norms do not fold."""
        if self.training or (convs := folded_convs(self, self._convs(), x)) is None:
            return None

        def run(x: Tensor, skip: Tensor) -> Tensor:
            for conv in convs[:-1]:
                x = conv(x, relu=True)
            return convs[-1](x, skip, relu=True)

        return run

    def _project(self, x: Tensor) -> Tensor:
        """The skip path; x itself where it is the identity."""
        return x if self.shortcut is None else project(self.shortcut, x)


class _PlainResidual(_Residual):
    """Is always run."""

    def forward(self, x: Tensor) -> Tensor:
        if (fused := self._fused(x)) is None:
            return super().forward(x)
        skip = self._project(x)
        return fused(x, skip.clone() if skip is x else skip)


class PlainBasicBlock(_PlainResidual, BasicBlock):
    """Detectron2's ``BasicBlock``."""


class PlainBottleneckBlock(_PlainResidual, BottleneckBlock):
    """Detectron2's ``BottleneckBlock``."""


class _GatedResidual(_Residual, GatedBlock):
    """Is run as a whole or not at all."""

    def units(self, stage: int) -> list[Unit]:
        return [Unit(self.name, "block", self.in_channels, 1, stage, self.out_channels)]

    def _branch(self, x: Tensor) -> Tensor:
        *first, last = self._convs()
        for conv in first:
            x = F.relu_(conv(x))
        return last(x)

    def forward(self, x: Tensor, router: Router) -> Tensor:
        cost = chain_cost(self._convs(), *x.shape[-2:])[0]
        unit_cost = unit_costs(cost, 1, x.device)
        decision = router.decide(x, unit_cost)
        router.record_units(self.name, decision, unit_cost, cost)
        if self.shortcut is not None:
            router.trace.add_fixed(f"{self.name}.shortcut", conv_cost(self.shortcut, *x.shape[-2:])[0], x)
        skip = self._project(x)  # once for open and closed images: both need it
        return run_block(self._branch, x, skip, decision, owner=self, fused=self._fused(x), overwrite=router.overwrite)


class GatedBasicBlock(_GatedResidual, BasicBlock):  # type: ignore[misc]  # ``forward`` has a router
    """Two 3x3 convolutions, as one unit. The constructor is that of Detectron2's ``BasicBlock``."""


class GatedBottleneckBlock(_GatedResidual, BottleneckBlock):  # type: ignore[misc]  # ``forward`` has a router
    """1x1, 3x3 and 1x1 convolutions, as one unit. The constructor is that of Detectron2's ``BottleneckBlock``."""


def make_stage(
    cfg: CfgNode, number: int, count: int, *, bottleneck: int = 0, in_channels: int, out_channels: int, **arguments
) -> list[CNNBlockBase]:
    """The blocks of one stage, of the kind that MODEL.GATED.UNIT asks for.

    Args:
        number: of the stage, from 0. The first block of the first stage is a unit with MODEL.GATED.FIRST_BLOCK only:
            SkipNet always runs it.
        count: of blocks.
        bottleneck: channels of the 3x3 convolution of bottleneck blocks; 0: basic blocks.
        in_channels: of the first block.
        out_channels: of all blocks.
        arguments: ``stride`` of the first block, ``norm`` and further arguments of all blocks.

    Raises:
        ValueError: MODEL.GATED.UNIT is unknown.
    """
    unit = cfg.MODEL.GATED.UNIT
    if unit not in ("block", "group", "channel"):
        raise ValueError(f'MODEL.GATED.UNIT is {unit!r}: use "block", "group" or "channel".')
    stride = arguments.pop("stride")
    if unit == "channel" and not bottleneck and cfg.MODEL.GATED.BOTTLENECK == "B":
        # "A modified ResNet-18 with bottleneck-B" (Fig. 3.5) is all that is said; in place of a 3x3 a 1x1 and a 3x3.
        bottleneck = out_channels
    make = {"block": _block_classes, "group": _group_classes, "channel": _channel_classes}[unit]
    first, others, arguments = make(cfg, bottleneck, arguments)
    blocks: list[CNNBlockBase] = []
    for i in range(count):
        block_class = first if i == number == 0 and not cfg.MODEL.GATED.FIRST_BLOCK else others
        blocks.append(block_class(in_channels, out_channels, stride=stride if i == 0 else 1, **arguments))
        in_channels = out_channels
    return blocks


def _block_classes(cfg: CfgNode, bottleneck: int, arguments: dict) -> tuple[type, type, dict]:
    if not bottleneck:
        return PlainBasicBlock, GatedBasicBlock, arguments
    return PlainBottleneckBlock, GatedBottleneckBlock, {**arguments, "bottleneck_channels": bottleneck}


def _group_classes(cfg: CfgNode, bottleneck: int, arguments: dict) -> tuple[type, type, dict]:
    from .cdb_blocks import CDBBlock

    arguments = {**arguments, "groups": cfg.MODEL.GATED.GROUPS}
    return CDBBlock, CDBBlock, {**arguments, "bottleneck_channels": bottleneck}


def _channel_classes(cfg: CfgNode, bottleneck: int, arguments: dict) -> tuple[type, type, dict]:
    from .moe_blocks import MoEBasicBlock, MoEBottleneckA, MoEBottleneckB

    arguments = {**arguments, "widen": cfg.MODEL.GATED.WIDEN}
    if not bottleneck:
        return MoEBasicBlock, MoEBasicBlock, arguments
    kinds = {"A": MoEBottleneckA, "B": MoEBottleneckB}
    if cfg.MODEL.GATED.BOTTLENECK not in kinds:
        raise ValueError(f'MODEL.GATED.BOTTLENECK is {cfg.MODEL.GATED.BOTTLENECK!r}: use "A" or "B".')
    block = kinds[cfg.MODEL.GATED.BOTTLENECK]
    return block, block, {**arguments, "bottleneck_channels": bottleneck}


def _check(cfg: CfgNode) -> None:
    res = cfg.MODEL.RESNETS
    if res.DEPTH not in BLOCKS_PER_STAGE:
        raise ValueError(f"MODEL.RESNETS.DEPTH is {res.DEPTH}: use one of {', '.join(map(str, BLOCKS_PER_STAGE))}.")
    small = {"RES2_OUT_CHANNELS": 64, "RES4_DILATION": 1, "RES5_DILATION": 1, "NUM_GROUPS": 1}
    needed: dict[str, int] = {} if res.DEPTH >= 50 else small
    if cfg.MODEL.GATED.UNIT != "block":
        needed["NUM_GROUPS"] = 1
    for key, value in needed.items():
        if res[key] != value:
            raise ValueError(
                f"MODEL.RESNETS.{key} has to be {value}, not {res[key]}, with MODEL.RESNETS.DEPTH {res.DEPTH} and "
                f"MODEL.GATED.UNIT {cfg.MODEL.GATED.UNIT}."
            )
    if (res.RES4_DILATION, res.RES5_DILATION) not in ((1, 1), (1, 2), (2, 4)):
        raise ValueError(
            f"MODEL.RESNETS.RES4_DILATION is {res.RES4_DILATION} and RES5_DILATION is {res.RES5_DILATION}: use 1 and 1 "
            "(stride 32), 1 and 2 (stride 16) or 2 and 4 (stride 8)."
        )
    if any(res.DEFORM_ON_PER_STAGE):
        raise ValueError("MODEL.RESNETS.DEFORM_ON_PER_STAGE: gated backbones have no deformable convolution.")


@BACKBONE_REGISTRY.register()
@notices_keys
def build_gated_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GatedBackbone:
    """A gated ResNet-18, 34, 50, 101 or 152 from MODEL.RESNETS, MODEL.GATED and MODEL.POLICY; features res2 ... res5.

    Raises:
        ValueError: a key has a value that cannot be; the message names it.
    """
    _check(cfg)
    res = cfg.MODEL.RESNETS
    deep = res.DEPTH >= 50
    channels, out_channels, width = res.STEM_OUT_CHANNELS, res.RES2_OUT_CHANNELS, res.NUM_GROUPS * res.WIDTH_PER_GROUP
    stages: dict[str, list[CNNBlockBase]] = {}
    for number, count in enumerate(BLOCKS_PER_STAGE[res.DEPTH]):
        dilation = (1, 1, res.RES4_DILATION, res.RES5_DILATION)[number]
        arguments = {"norm": res.NORM, "stride": 1 if number == 0 or dilation > 1 else 2}
        if deep:
            arguments |= {"bottleneck": width, "stride_in_1x1": res.STRIDE_IN_1X1, "dilation": dilation}
        if deep and cfg.MODEL.GATED.UNIT == "block":
            arguments["num_groups"] = res.NUM_GROUPS
        stages[f"res{number + 2}"] = make_stage(
            cfg, number, count, in_channels=channels, out_channels=out_channels, **arguments
        )
        channels, out_channels, width = out_channels, 2 * out_channels, 2 * width
    stem = BasicStem if cfg.MODEL.GATED.UNIT == "channel" else FoldedStem
    return GatedBackbone.of_keys(cfg, stem(channels_of(input_shape), res.STEM_OUT_CHANNELS, norm=res.NORM), stages)
