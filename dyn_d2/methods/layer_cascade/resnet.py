"""Dilated ResNets in three stages for Layer Cascade: stem to res3, res4, res5.

The strides of res4 and res5 are taken out and the convolutions after them dilated instead, by 2 and 4 (DeepLab's a
trous trick): at the places where the plain network has values, the values are the same. Names and shapes of parameters
are Detectron2's, so that weights of plain ResNets load.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.config.applied import notices_keys
from dyn_d2.gating.backbones.base import fixed_cost
from dyn_d2.gating.backbones.resnet import BLOCKS_PER_STAGE

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock

from .backbone import LayerCascadeBackbone
from .pixels import Features, conv

NORMS = ("BN", "FrozenBN", "")
_NAMES, _STRIDES, _DILATIONS = ("res2", "res3", "res4", "res5"), (1, 2, 1, 1), (1, 1, 2, 4)


class _RegionResidual(nn.Module):
    """A residual block of Detectron2 on maps or on chosen pixels; to be inherited from before that block."""

    conv1: Any
    conv2: Any
    conv3: Any
    shortcut: Any

    def forward(self, x: Any) -> Any:
        """Features to features."""
        layers = [self.conv1, self.conv2, *([self.conv3] if hasattr(self, "conv3") else [])]
        out: Features = x
        for layer in layers[:-1]:
            out = conv(layer, out, relu=True)
        skip = x if self.shortcut is None else conv(self.shortcut, x)
        return conv(layers[-1], out, skip, relu=True)


class RegionBasicBlock(_RegionResidual, BasicBlock):
    """Two 3x3 convolutions. The constructor is that of Detectron2's ``BasicBlock``."""


class RegionBottleneckBlock(_RegionResidual, BottleneckBlock):
    """1x1, 3x3 and 1x1 convolutions. The constructor is that of Detectron2's ``BottleneckBlock``."""


class RegionStem(BasicStem):
    """ResNet's stem, in evaluation with its batch norm as part of the convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(conv(self.conv1, x, relu=True), kernel_size=3, stride=2, padding=1)


class LayerCascadeResNet(LayerCascadeBackbone):
    """See the module."""

    res2: nn.Sequential
    res3: nn.Sequential
    res4: nn.Sequential
    res5: nn.Sequential

    def __init__(self, stem: BasicStem, stages: Mapping[str, Sequence[Any]], freeze_at: int = 0) -> None:
        """
        Args:
            stem: of stride 4.
            stages: "res2" to "res5" -> blocks, which take maps, and from res4 on also pixels.
            freeze_at: how many of stem, res2, ... to freeze, from the front.
        """
        super().__init__()
        self.stem = stem
        for name, blocks in stages.items():
            self.add_module(name, nn.Sequential(*blocks))
        res3, res4, res5 = (stages[name][-1].out_channels for name in _NAMES[1:])
        self.channels = res3, res4, res5
        parts: list[Sequence[Any]] = [[stem], *stages.values()]
        for part in parts[: max(freeze_at, 0)]:
            for block in part:
                block.freeze()

    def run_first(self, images: Tensor) -> Tensor:
        return self.res3(self.res2(self.stem(images)))

    def first_cost(self, height: int, width: int) -> float:
        total = 0.0
        blocks: list[Any] = [self.stem, *self.res2, *self.res3]
        for block in blocks:
            total += fixed_cost(block, height, width)
            height, width = -(-height // block.stride), -(-width // block.stride)
        return total

    def later_parts(self, stage: int) -> list[nn.Module]:
        return list((self.res4, self.res5)[stage - 1])


def dilate(block: nn.Module, before: int, dilation: int) -> None:
    """Dilate the 3x3 convolutions of a residual block; the size of its output stays.

    Args:
        before: of the convolution that carries the stride in the plain network, and of what comes before it.
        dilation: of what comes after it; the same in all blocks of a stage but the first.
    """
    strided = "conv2" if getattr(block, "stride_in_3x3", False) else "conv1"
    for name in ("conv1", "conv2"):
        layer = getattr(block, name)
        if layer.kernel_size == (3, 3):
            layer.dilation = layer.padding = (before, before) if name <= strided else (dilation, dilation)


def check_norm(key: str, norm: str) -> None:
    """
    Raises:
        ValueError: a norm that mixes the pixels of a map, or the processes of a job, which have different pixels.
    """
    if norm not in NORMS:
        raise ValueError(f'{key} is {norm!r}: layers that run on chosen pixels only need "BN", "FrozenBN" or "".')


@BACKBONE_REGISTRY.register()
@notices_keys
def build_cascade_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> LayerCascadeResNet:
    """A dilated ResNet-18, 34, 50, 101 or 152 from MODEL.RESNETS.{DEPTH, NORM, STRIDE_IN_1X1,
    STEM_OUT_CHANNELS, WIDTH_PER_GROUP} and MODEL.BACKBONE.FREEZE_AT.

    Raises:
        ValueError: there is no such depth, or the norm does not go with regions.
    """
    res = cfg.MODEL.RESNETS
    if res.DEPTH not in BLOCKS_PER_STAGE:
        raise ValueError(f"MODEL.RESNETS.DEPTH is {res.DEPTH}: use one of {', '.join(map(str, BLOCKS_PER_STAGE))}.")
    check_norm("MODEL.RESNETS.NORM", res.NORM)
    stages: dict[str, list[Any]] = {}
    channels, before = res.STEM_OUT_CHANNELS, 1
    for number, count in enumerate(BLOCKS_PER_STAGE[res.DEPTH]):
        width = res.WIDTH_PER_GROUP * 2**number
        blocks: list[Any] = []
        for i in range(count):
            arguments: dict[str, Any] = {"stride": _STRIDES[number] if i == 0 else 1, "norm": res.NORM}
            if res.DEPTH >= 50:
                arguments |= {"bottleneck_channels": width, "stride_in_1x1": res.STRIDE_IN_1X1}
                blocks.append(RegionBottleneckBlock(channels, 4 * width, **arguments))
                blocks[-1].stride_in_3x3 = not res.STRIDE_IN_1X1
            else:
                blocks.append(RegionBasicBlock(channels, width, **arguments))
            dilate(blocks[-1], before if i == 0 else _DILATIONS[number], _DILATIONS[number])
            channels = blocks[-1].out_channels
        stages[_NAMES[number]], before = blocks, _DILATIONS[number]
    assert input_shape.channels is not None  # of images
    stem = RegionStem(input_shape.channels, res.STEM_OUT_CHANNELS, norm=res.NORM)
    return LayerCascadeResNet(stem, stages, cfg.MODEL.BACKBONE.FREEZE_AT)
