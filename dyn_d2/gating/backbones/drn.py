"""Gated dilated residual networks of kind A (Yu et al., CVPR 2017): the base of DeepMoE on Cityscapes.

A ResNet whose last two stages keep the resolution and dilate their 3x3 convolutions instead, by 2 and 4; the first
block of each is not dilated. Names and shapes of parameters are those of the ResNet, so that its weights load.
"""

from functools import partial

from dyn_d2.config.applied import notices_keys
from dyn_d2.modeling.shapes import channels_of

from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import BasicStem

from .base import GatedBackbone
from .resnet import BLOCKS_PER_STAGE, make_stage

_DEPTHS = tuple(depth for depth in BLOCKS_PER_STAGE if depth >= 50)
_STRIDES, _DILATIONS = (1, 2, 1, 1), (1, 1, 2, 4)


@BACKBONE_REGISTRY.register()
@notices_keys
def build_gated_drn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GatedBackbone:
    """DRN-A-50, 101 or 152 from MODEL.RESNETS.{DEPTH, NORM, STRIDE_IN_1X1, OUT_FEATURES}, MODEL.GATED and MODEL.POLICY.

    Features: res2 (256 channels, stride 4), res3 (512), res4 (1024), res5 (2048), the last three of stride 8.

    Raises:
        ValueError: there is no DRN-A of that depth here.
    """
    res = cfg.MODEL.RESNETS
    if res.DEPTH not in _DEPTHS:
        raise ValueError(f"MODEL.RESNETS.DEPTH is {res.DEPTH}: a DRN-A has {', '.join(map(str, _DEPTHS))} layers.")
    stages: dict[str, list[CNNBlockBase]] = {}
    channels = res.STEM_OUT_CHANNELS
    for number, (count, stride, dilation) in enumerate(
        zip(BLOCKS_PER_STAGE[res.DEPTH], _STRIDES, _DILATIONS, strict=True)
    ):
        width = 64 * 2**number
        make = partial(
            make_stage,
            cfg,
            number,
            bottleneck=width,
            out_channels=4 * width,
            norm=res.NORM,
            stride_in_1x1=res.STRIDE_IN_1X1,
        )
        plain = count if dilation == 1 else 1
        blocks = make(plain, in_channels=channels, stride=stride, dilation=1)
        if count > plain:
            blocks += make(count - plain, in_channels=4 * width, stride=1, dilation=dilation)
        stages[f"res{number + 2}"], channels = blocks, 4 * width
    return GatedBackbone.of_keys(cfg, BasicStem(channels_of(input_shape), res.STEM_OUT_CHANNELS, norm=res.NORM), stages)
