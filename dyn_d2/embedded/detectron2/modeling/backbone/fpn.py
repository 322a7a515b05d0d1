"""Feature pyramid network (Lin et al., Feature Pyramid Networks for Object Detection)."""

from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm

from .backbone import Backbone
from .build import BACKBONE_REGISTRY
from .resnet import build_resnet_backbone


class FPN(Backbone):
    """A top-down pyramid on a bottom-up backbone: features "p<k>" of stride 2**k, all with the same channels."""

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        norm="",
        top_block: nn.Module | None = None,
        fuse_type: str = "sum",
        square_pad: int = 0,
    ) -> None:
        """
        Args:
            bottom_up: the backbone below.
            in_features: its features to build on, fine to coarse, each of twice the stride of the one before.
            out_channels: channels of every level.
            norm: normalisation after each convolution, as for ``layers.get_norm``; "" also gives them a bias.
            top_block: makes ``num_levels`` coarser levels from the feature named ``in_feature``, which is one of the
                backbone's or of the pyramid's.
            fuse_type: "sum" or "avg", how a level and the enlarged level above it are joined.
            square_pad: > 0: images are to be padded to a square of that side.

        Raises:
            ValueError: ``in_features`` is empty, its strides do not double, or ``fuse_type`` is unknown.
        """
        super().__init__()
        shapes = bottom_up.output_shape()
        unknown = [f for f in in_features if f not in shapes]
        if unknown or not in_features:
            raise ValueError(f"FPN in_features {list(in_features)} must name some of the features {list(shapes)}")
        strides = [shapes[f].stride for f in in_features]
        if any(s & (s - 1) for s in strides) or any(b != 2 * a for a, b in zip(strides, strides[1:], strict=False)):
            raise ValueError(f"FPN needs features whose strides double from level to level, got {strides}")
        if fuse_type not in ("sum", "avg"):
            raise ValueError(f"FPN fuse_type must be 'sum' or 'avg', not {fuse_type!r}")

        levels = [s.bit_length() - 1 for s in strides]
        for level, name in zip(levels, in_features, strict=True):
            norms = get_norm(norm, out_channels), get_norm(norm, out_channels)
            lateral = Conv2d(shapes[name].channels, out_channels, kernel_size=1, bias=norm == "", norm=norms[0])
            output = Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=norm == "", norm=norms[1])
            weight_init.c2_xavier_fill(lateral)
            weight_init.c2_xavier_fill(output)
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
        self._levels = levels
        self.in_features = tuple(in_features)
        self.top_block = top_block
        self.bottom_up = bottom_up
        if top_block is not None:
            levels = levels + [levels[-1] + i + 1 for i in range(top_block.num_levels)]
        self._out_features = [f"p{level}" for level in levels]
        self._out_feature_strides = {f"p{level}": 2**level for level in levels}
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility = strides[-1]
        self._square_pad = square_pad
        self._fuse_type = fuse_type

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"square_size": self._square_pad}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (N, C, H, W) to "p<k>": (N, out_channels, H / 2**k, W / 2**k), from fine to coarse."""
        features = self.bottom_up(x)
        pyramid: dict[str, Tensor] = {}
        above = None
        for level, name in zip(reversed(self._levels), reversed(self.in_features), strict=True):
            merged = getattr(self, f"fpn_lateral{level}")(features[name])
            if above is not None:
                # The enlarged map is new and nobody else's, so it takes the sum in place.
                merged = F.interpolate(above, scale_factor=2.0, mode="nearest").add_(merged)
                if self._fuse_type == "avg":
                    merged = merged.div_(2)
            pyramid[f"p{level}"] = getattr(self, f"fpn_output{level}")(merged)
            above = merged
        if self.top_block is not None:
            source = self.top_block.in_feature
            extra = self.top_block(features[source] if source in features else pyramid[source])
            pyramid.update(zip(self._out_features[len(self._levels) :], extra, strict=True))
        return {name: pyramid[name] for name in self._out_features}


class LastLevelMaxPool(nn.Module):
    """P6 for Faster R-CNN: every second pixel of P5."""

    num_levels = 1
    in_feature = "p5"

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.max_pool2d(x, kernel_size=1, stride=2)]


class LastLevelP6P7(nn.Module):
    """P6 and P7 for RetinaNet: convolutions of stride 2, usually on C5."""

    num_levels = 2

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "res5") -> None:
        super().__init__()
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
        weight_init.c2_xavier_fill(self.p6)
        weight_init.c2_xavier_fill(self.p7)

    def forward(self, c5: Tensor) -> list[Tensor]:
        p6 = self.p6(c5)
        return [p6, self.p7(F.relu(p6))]


def _fpn_from_config(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    fpn = cfg.MODEL.FPN
    return FPN(bottom_up, fpn.IN_FEATURES, fpn.OUT_CHANNELS, fpn.NORM, top_block, fpn.FUSE_TYPE)


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet with FPN and a pooled P6: the backbone of Faster and Mask R-CNN."""
    return _fpn_from_config(cfg, build_resnet_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet with FPN and convolutional P6 and P7 on res5: the backbone of RetinaNet."""
    bottom_up = build_resnet_backbone(cfg, input_shape)
    channels = bottom_up.output_shape()["res5"].channels
    return _fpn_from_config(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))
