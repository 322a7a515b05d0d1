"""Gated ResNets for small images: 6n + 2 layers in three stages (He et al. 2016, section 4.2), gated as in SkipNet."""

import fvcore.nn.weight_init as weight_init
from torch import Tensor
from torch.nn import functional as F

from dyn_d2.config.applied import notices_keys
from dyn_d2.modeling.shapes import channels_of

from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling.backbone import BACKBONE_REGISTRY

from .base import GatedBackbone
from .resnet import make_stage


class CifarStem(CNNBlockBase):
    """One 3x3 convolution of stride 1."""

    def __init__(self, in_channels: int, out_channels: int, norm) -> None:
        super().__init__(in_channels, out_channels, 1)
        self.conv1 = Conv2d(
            in_channels, out_channels, kernel_size=3, padding=1, bias=False, norm=get_norm(norm, out_channels)
        )
        weight_init.c2_msra_fill(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.conv1(x))


@BACKBONE_REGISTRY.register()
@notices_keys
def build_gated_cifar_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GatedBackbone:
    """A gated ResNet of MODEL.RESNETS.DEPTH = 6n + 2 layers (38, 74, 110, ...) with 16, 32 and 64 channels.

    Features: res2, res3, res4 of stride 1, 2, 4. The first blocks of res3 and res4 have projections.

    Raises:
        ValueError: there is no network of that depth.
    """
    res = cfg.MODEL.RESNETS
    count, rest = divmod(res.DEPTH - 2, 6)
    if rest or count < 1:
        raise ValueError(
            f"MODEL.RESNETS.DEPTH is {res.DEPTH}: ResNets for small images have 6n + 2 layers, e.g. 38, 74, 110 or 152."
        )
    stages: dict[str, list[CNNBlockBase]] = {}
    channels = 16
    for number, width in enumerate((16, 32, 64)):
        stages[f"res{number + 2}"] = make_stage(
            cfg,
            number,
            count,
            in_channels=channels,
            out_channels=width,
            stride=1 if number == 0 else 2,
            norm=res.NORM,
        )
        channels = width
    return GatedBackbone.of_keys(cfg, CifarStem(channels_of(input_shape), 16, res.NORM), stages)
