"""DarkNet-19 (Redmon and Farhadi, "YOLO9000: better, faster, stronger", Table 6) without its classifier, as YOLOv2 and
feature re-weighting use it.

Eighteen convolutions in six stages, each stage but the last followed by a 2x2 max pooling. Within a stage 3x3
convolutions take turns with 1x1 ones of half the width. They are numbered conv1 ... conv18, as the papers count them.
"""

import fvcore.nn.weight_init as weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.config.applied import notices_keys
from dyn_d2.modeling.shapes import channels_of

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.backbone import BACKBONE_REGISTRY, Backbone

SLOPE = 0.1  # of the leaky ReLU
STAGES = (
    (32,),
    (64,),
    (128, 64, 128),
    (256, 128, 256),
    (512, 256, 512, 256, 512),
    (1024, 512, 1024, 512, 1024),
)


def scaled(channels: int, width: float) -> int:
    """``channels`` times ``width``, at least 4."""
    return max(4, round(channels * width))


def conv_unit(in_channels: int, out_channels: int, kernel: int, norm: str = "BN") -> Conv2d:
    """Convolution that keeps the size, normalisation ("" for a bias in its place), leaky ReLU."""
    layer = Conv2d(
        in_channels,
        out_channels,
        kernel,
        padding=kernel // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=nn.LeakyReLU(SLOPE, inplace=True),
    )
    weight_init.c2_msra_fill(layer)
    return layer


class DarkNet19(Backbone):
    """Features conv13 (512 channels, stride 16) and conv18 (1024, stride 32), each times the width."""

    def __init__(self, in_channels: int = 3, width: float = 1.0, norm: str = "BN") -> None:
        """
        Args:
            in_channels: of the images.
            width: factor of all numbers of channels; 1 is DarkNet-19.
            norm: "BN", "FrozenBN", "GN", ... or "".

        Raises:
            ValueError: the width is not above 0.
        """
        super().__init__()
        if width <= 0:
            raise ValueError(f"MODEL.DARKNET.WIDTH is {width}: it has to be above 0.")
        self._stages: list[list[str]] = []
        for widths in STAGES:
            self._stages.append([])
            for place, channels in enumerate(widths):
                name = f"conv{sum(map(len, self._stages)) + 1}"
                out_channels = scaled(channels, width)
                self.add_module(name, conv_unit(in_channels, out_channels, 1 if place % 2 else 3, norm))
                self._stages[-1].append(name)
                in_channels = out_channels
        self._out_features = ["conv13", "conv18"]
        self._out_feature_strides = {"conv13": 16, "conv18": 32}
        self._out_feature_channels = {name: getattr(self, name).out_channels for name in self._out_features}

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W), H and W multiples of 32, to the two feature maps."""
        x = images
        for names in self._stages[:-1]:
            x = x if names is self._stages[0] else F.max_pool2d(x, 2)
            for name in names:
                x = getattr(self, name)(x)
        return {"conv13": x, "conv18": self.last_stage(x)}

    def last_stage(self, conv13: Tensor) -> Tensor:
        """conv18 from conv13, for those who change what lies between (Table 6.4)."""
        x = F.max_pool2d(conv13, 2)
        for name in self._stages[-1]:
            x = getattr(self, name)(x)
        return x


@BACKBONE_REGISTRY.register()
@notices_keys
def build_darknet19_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DarkNet19:
    """DarkNet19 by MODEL.DARKNET."""
    return DarkNet19(channels_of(input_shape), cfg.MODEL.DARKNET.WIDTH, cfg.MODEL.DARKNET.NORM)
