"""VGG16 of output stride 8 in the manner of DeepLab (Chen et al., TPAMI 2018, section 3.1), for dense prediction.

Its first three poolings halve the size, the last two keep it, and the convolutions behind the fourth are dilated by 2.
Names and shapes of ``features`` are those of torchvision's ``vgg16``, so that its weights load. DeepLab's two wide
layers behind the fifth pooling are left to the head.
"""

import fvcore.nn.weight_init as weight_init
from torch import Tensor, nn

from dyn_d2.config.applied import notices_keys
from dyn_d2.modeling.shapes import channels_of

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, Backbone

from .vgg import VGG16

_POOL_STRIDES = (2, 2, 2, 1)  # the fifth pooling would only blur the last feature


class DilatedVGG(Backbone):
    """Features stage1 (64 channels, stride 1) ... stage5 (512, stride 8), each taken before the pooling."""

    def __init__(self, in_channels: int = 3, out_features: tuple[str, ...] = ("stage5",), freeze_at: int = 0) -> None:
        """
        Args:
            out_features: names of the features to return.
            freeze_at: how many stages to freeze, from the front.

        Raises:
            ValueError: there is no such feature.
        """
        super().__init__()
        names = [f"stage{number + 1}" for number in range(len(VGG16))]
        unknown = [name for name in out_features if name not in names]
        if unknown or not out_features:
            raise ValueError(
                f"this backbone has the features {', '.join(names)}, not {', '.join(unknown) or '(none)'}."
            )
        self._out_features, stride = list(out_features), 1
        layers: list[nn.Module] = []
        self._out_feature_strides: dict[str, int] = {}
        self._out_feature_channels: dict[str, int] = {}
        self._ends: dict[int, str] = {}  # layer -> the feature that it gives
        for number, widths in enumerate(VGG16):
            dilation = 2 if number == len(VGG16) - 1 else 1
            for width in widths:
                conv = nn.Conv2d(in_channels, width, 3, padding=dilation, dilation=dilation)
                weight_init.c2_msra_fill(conv)
                layers += [conv, nn.ReLU(inplace=True)]
                in_channels = width
            self._ends[len(layers) - 1] = names[number]
            self._out_feature_strides[names[number]] = stride
            self._out_feature_channels[names[number]] = in_channels
            if number < len(_POOL_STRIDES):
                layers.append(nn.MaxPool2d(3, _POOL_STRIDES[number], padding=1))
                stride *= _POOL_STRIDES[number]
        self.features = nn.Sequential(*layers)
        ends = list(self._ends)
        for layer in layers[: ends[freeze_at - 1] + 1] if freeze_at > 0 else []:
            layer.requires_grad_(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> name -> feature map, as ``output_shape`` describes them."""
        x = images
        found: dict[str, Tensor] = {}
        for number, layer in enumerate(self.features):
            x = layer(x)
            if self._ends.get(number) in self._out_features:
                # The next layers do not change it: a pooling makes a new tensor.
                found[self._ends[number]] = x
        return found


@BACKBONE_REGISTRY.register()
@notices_keys
def build_dilated_vgg_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DilatedVGG:
    """VGG16 of output stride 8 from MODEL.RESNETS.OUT_FEATURES; MODEL.BACKBONE.FREEZE_AT counts stages."""
    return DilatedVGG(channels_of(input_shape), tuple(cfg.MODEL.RESNETS.OUT_FEATURES), cfg.MODEL.BACKBONE.FREEZE_AT)
