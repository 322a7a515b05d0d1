"""Networks of inverted residuals in three stages for Layer Cascade: EfficientNet-Lite, MobileNetV2 and their like from
timm, with its weights.

Stages end where the plain network's stride is 8, 16 and 32. The strides of the last two are taken out and the depthwise
convolutions after them dilated instead, by 2 and 4, so that all stages have a stride of 8; at the places where the
plain network has values, the values are the same.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.config.applied import notices_keys
from dyn_d2.modeling.backbone.timm import OWN_WEIGHTS, OwnPixels, own_pixels
from dyn_d2.modeling.backbone.timm_models import build_timm_model
from dyn_d2.modeling.shapes import channels_of
from dyn_d2.ops.onednn import Limit
from dyn_d2.utils.errors import UserError

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.backbone import BACKBONE_REGISTRY

from .backbone import STRIDE, LayerCascadeBackbone
from .pixels import Features, conv, pixel_cost
from .resnet import check_norm

_RECTIFIERS: dict[str, Limit] = {"Identity": False, "ReLU": True, "ReLU6": 6.0}
_CHOOSE = "choose an EfficientNet-Lite or MobileNetV2"
_BLOCKS = {  # of timm -> its convolutions in their order, each with the norm behind it
    "ConvBnAct": (("conv", "bn1"),),
    "DepthwiseSeparableConv": (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    "InvertedResidual": (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
}


class ConvNormAct(nn.Module):
    """A convolution, a norm and a rectifier, with the numbers of timm's.

    Attributes:
        conv: the convolution with its norm.
        relu: the rectifier, see ``pixels.conv``.
        stride: of the convolution.
    """

    def __init__(self, layer: Any, norm: Any, kind: str, *, dilation: int = 0) -> None:
        """
        Args:
            layer: timm's convolution.
            norm: timm's norm with its activation.
            kind: of norm here, "BN", "FrozenBN" or "".
            dilation: in place of its stride; 0: the stride stays.

        Raises:
            UserError: an even kernel, or an activation that is no rectifier.
        """
        super().__init__()
        name = type(norm.act).__name__
        if name not in _RECTIFIERS:
            raise UserError(
                f"MODEL.TIMM.NAME: layers with the activation {name} do not run on chosen pixels here, only those with "
                f"{', '.join(_RECTIFIERS)}: {_CHOOSE}."
            )
        if any(side % 2 == 0 for side in layer.kernel_size):
            raise UserError(
                f"MODEL.TIMM.NAME: a kernel of {' x '.join(map(str, layer.kernel_size))} has no middle, so that no "
                "pixel is its own: choose a network whose kernels have odd sides."
            )
        self.relu, self.stride = _RECTIFIERS[name], 1 if dilation else layer.stride[0]
        margin = [max(dilation, 1) * (side // 2) for side in layer.kernel_size]
        # TensorFlow's way: kernels with a stride lie a pixel further down and right.
        self._shifted = self.stride > 1 and type(layer).__name__ == "Conv2dSame"
        self.conv = Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=self.stride,
            padding=0 if self._shifted else margin,
            dilation=max(dilation, 1),
            groups=layer.groups,
            bias=not kind,
            norm=get_norm(kind, layer.out_channels),
        )
        self._margin = margin
        self._take(layer, norm)

    @torch.no_grad()
    def _take(self, layer: Any, norm: Any) -> None:
        self.conv.weight.copy_(layer.weight)
        own = self.conv.norm
        if own is None:
            return
        own.eps = norm.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(own, name).copy_(getattr(norm, name))

    def forward(self, x: Any, total: Any = None) -> Any:
        """Features to features."""
        if self._shifted:  # maps of even sides, as only the first stage has strides
            top, left = self._margin
            x = F.pad(x, (left - 1, left, top - 1, top))
        return conv(self.conv, x, total, relu=self.relu)


class MobileBlock(nn.Module):
    """A chain of convolutions, of timm's inverted residuals or depthwise separable ones, with or without a skip.

    Attributes:
        first: of its stage, so that its input belongs to somebody else; without gradients others overwrite theirs.
    """

    def __init__(self, layers: Sequence[ConvNormAct], skip: bool) -> None:
        super().__init__()
        self.layers, self.skip = nn.ModuleList(layers), skip
        self.first = False
        self.stride, self.out_channels = layers[0].stride, layers[-1].conv.out_channels
        for layer in layers[1:]:
            self.stride *= layer.stride

    def forward(self, x: Features) -> Features:
        *first, last = self.layers
        out: Any = x
        for layer in first:
            out = layer(out)
        if not self.skip:
            return last(out)
        if self.first and isinstance(x, Tensor):
            x = x.clone(memory_format=torch.preserve_format)
        return last(out, x)

    def freeze(self) -> None:
        """No gradients, and norms as constants."""
        for layer in self.modules():
            if isinstance(layer, ConvNormAct):
                layer.requires_grad_(False)
                if layer.conv.norm is not None:
                    layer.conv.norm = _frozen(layer.conv.norm)


def _frozen(norm: Any) -> nn.Module:
    from detectron2.layers import FrozenBatchNorm2d

    return FrozenBatchNorm2d.convert_frozen_batchnorm(norm)


class LayerCascadeMobile(LayerCascadeBackbone):
    """See the module."""

    def __init__(self, pixels: OwnPixels, stages: Sequence[Sequence[MobileBlock]]) -> None:
        """
        Args:
            pixels: adapts the normalisation of images.
            stages: three lists of blocks; only those of the first have strides, 8 together.
        """
        super().__init__()
        self.pixels = pixels
        self.first, self.second, self.third = (nn.Sequential(*blocks) for blocks in stages)
        for blocks in stages:
            blocks[0].first = True
        first, second, third = (blocks[-1].out_channels for blocks in stages)
        self.channels = first, second, third

    def run_first(self, images: Tensor) -> Tensor:
        return self.first(self.pixels(images).contiguous(memory_format=torch.channels_last))

    def first_cost(self, height: int, width: int) -> float:
        total = 0.0
        for block in self.first:
            assert isinstance(block, MobileBlock)
            for layer in block.layers:
                assert isinstance(layer, ConvNormAct)
                height, width = -(-height // layer.stride), -(-width // layer.stride)
                total += pixel_cost(layer) * height * width
        return total

    def later_parts(self, stage: int) -> list[nn.Module]:
        return list((self.second, self.third)[stage - 1])


def _block(name: str, block: Any, kind: str, dilation: int, after: int) -> MobileBlock:
    """
    Args:
        dilation: of the kernels up to the one that carries a stride in the plain network; 0: strides stay.
        after: of those behind it.
    """
    kinds = type(block).__name__
    if kinds not in _BLOCKS:
        raise UserError(f"MODEL.TIMM.NAME {name} has a {kinds}, which does not run on chosen pixels: {_CHOOSE}.")
    if not isinstance(getattr(block, "se", None), nn.Identity | type(None)):
        raise UserError(
            f"MODEL.TIMM.NAME {name} weighs channels by means over the whole map (squeeze and excitation), which "
            f"chosen pixels do not have: {_CHOOSE}."
        )
    layers = []
    for layer, norm in ((getattr(block, layer), getattr(block, norm)) for layer, norm in _BLOCKS[kinds]):
        layers.append(ConvNormAct(layer, norm, kind, dilation=dilation))
        dilation = after if dilation and layer.stride != (1, 1) else dilation
    return MobileBlock(layers, bool(getattr(block, "has_skip", False)))


def cascade_of(name: str, network: Any, kind: str, freeze_at: int) -> list[list[MobileBlock]]:
    """The three stages of a network of timm.

    Args:
        name: of the network, for messages.
        network: with ``conv_stem``, ``bn1`` and ``blocks``.
        kind: of norm.
        freeze_at: k > 0 freezes the blocks up to a stride of 2^k.

    Raises:
        UserError: it is of another kind, or has no map of stride 8, 16 or 32.
    """
    if not all(hasattr(network, part) for part in ("conv_stem", "bn1", "blocks")):
        raise UserError(
            f"MODEL.TIMM.NAME {name} is no chain of inverted residuals, as build_cascade_mobile_backbone needs: "
            f"{_CHOOSE}."
        )
    stem, norm, blocks = network.conv_stem, network.bn1, network.blocks
    stages: list[list[MobileBlock]] = [[], [], []]
    made = MobileBlock([ConvNormAct(stem, norm, kind)], False)
    stages[0].append(made)
    stride, frozen = made.stride, [(made.stride, made)]
    for block in (block for stage in blocks for block in stage):
        before = stride
        for layer in block.modules():
            stride *= layer.stride[0] if isinstance(layer, nn.Conv2d) else 1
        made = _block(name, block, kind, before // STRIDE if stride > STRIDE else 0, stride // STRIDE)
        stages[0 if stride <= STRIDE else 1 if stride == 2 * STRIDE else 2].append(made)
        frozen.append((stride, made))
    if stride != 4 * STRIDE or not all(stages):
        raise UserError(f"MODEL.TIMM.NAME {name} ends at a stride of {stride}: three stages need 8, 16 and 32.")
    for reached, made in frozen:
        if reached <= 1 << freeze_at and freeze_at > 0:
            made.freeze()
    return stages


@BACKBONE_REGISTRY.register()
@notices_keys
def build_cascade_mobile_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> LayerCascadeMobile:
    """MODEL.TIMM.{NAME, WEIGHTS, NORM}, an EfficientNet-Lite, MobileNetV2 or another network of inverted residuals with
    rectifiers, and MODEL.BACKBONE.FREEZE_AT.

    Raises:
        UserError, ValueError, FileNotFoundError: there is no such network or no weights, it has layers that do not run
            on chosen pixels, or the norm does not go with regions.
    """
    kind = cfg.MODEL.TIMM.NORM
    check_norm("MODEL.TIMM.NORM", kind)
    model = build_timm_model(cfg, channels_of(input_shape), ["res3", "res4", "res5"])
    stages = cascade_of(model.name, model.module, kind, cfg.MODEL.BACKBONE.FREEZE_AT)
    backbone = LayerCascadeMobile(own_pixels(cfg, model), stages)
    setattr(backbone, OWN_WEIGHTS, model.pretrained)
    return backbone
