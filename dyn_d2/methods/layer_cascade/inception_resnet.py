"""Inception-ResNet-v2 (Szegedy et al., Inception-v4, Sec. 3.2 and 3.3) in three stages: IRNet of Layer Cascade.

    stage 1   stem, 5 A blocks, Reduction-A        320, then 1088 channels
    stage 2   10 B blocks, Reduction-B            2080 channels
    stage 3   5 C blocks                          2080 channels

Made for segmentation: both reductions have a stride of 1 instead of 2, B blocks and Reduction-B are dilated by 2, C
blocks by 4, and all convolutions keep the size of a map. In later stages reductions and blocks run on chosen pixels;
what the others were before is carried on and seen by Reduction-B. Scales of residuals and widths are those of the
published TensorFlow network, which has 10, 20 and 10 blocks; its weights in PyTorch load (timm_names.py).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.config.applied import notices_keys

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.backbone import BACKBONE_REGISTRY

from .backbone import LayerCascadeBackbone
from .pixels import Features, Pixels, ScaledConv2d, cat, conv, max_pool, surround
from .resnet import check_norm

_EPS = 1e-3  # of batch norm, as the published weights want it
# Layers of a branch: output channels and kernel.
_A = (((32, 1),), ((32, 1), (32, 3)), ((32, 1), (48, 3), (64, 3)))
_B = (((192, 1),), ((128, 1), (160, (1, 7)), (192, (7, 1))))
_C = (((192, 1),), ((192, 1), (224, (1, 3)), (256, (3, 1))))
_REDUCE_A = (((384, 3),), ((256, 1), (256, 3), (384, 3)))
_REDUCE_B = (((256, 1), (384, 3)), ((256, 1), (288, 3)), ((256, 1), (288, 3), (320, 3)))


def _conv(channels: int, outputs: int, kernel, norm: str, *, stride: int = 1, dilation: int = 1) -> Conv2d:
    """Convolution that keeps the size of a map, and norm."""
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    layer: Any = Conv2d(
        channels,
        outputs,
        kernel,
        stride=stride,
        padding=tuple(dilation * (side // 2) for side in kernel),
        dilation=dilation,
        bias=not norm,
        norm=get_norm(norm, outputs),
    )
    if layer.norm is not None:
        layer.norm.eps = _EPS
    weight_init.c2_msra_fill(layer)
    return layer


class _Branches(nn.Module):
    """Chains of convolutions side by side, named branch0, branch1, ...; each convolution has a norm and ReLU."""

    def __init__(self, channels: int, layout: Sequence[Sequence[tuple]], norm: str, dilation: int = 1) -> None:
        super().__init__()
        self.count, self.out_channels = len(layout), sum(branch[-1][0] for branch in layout)
        for number, branch in enumerate(layout):
            layers, inputs = [], channels
            for outputs, kernel in branch:
                layers.append(_conv(inputs, outputs, kernel, norm, dilation=dilation))
                inputs = outputs
            self.add_module(f"branch{number}", nn.ModuleList(layers))

    def run_branches(self, x: Features) -> list[Any]:
        found = []
        for number in range(self.count):
            out = x
            for layer in getattr(self, f"branch{number}"):
                out = conv(layer, out, relu=True)
            found.append(out)
        return found


class InceptionBlock(_Branches):
    """ReLU(x + scale * up(branches(x))), for blocks A, B and C; ``up`` has no norm. The last block is without ReLU."""

    def __init__(self, channels: int, layout, scale: float, norm: str, dilation: int = 1, relu: bool = True) -> None:
        super().__init__(channels, layout, norm, dilation)
        self.conv2d = ScaledConv2d(self.out_channels, channels, kernel_size=1)
        self.conv2d.scale, self.relu = scale, relu
        weight_init.c2_msra_fill(self.conv2d)
        self.out_channels = channels

    def forward(self, x: Features) -> Features:
        return conv(self.conv2d, cat(self.run_branches(x)), x, relu=self.relu)


class Reduction(_Branches):
    """Branches and a 3x3 max pooling, side by side. They keep the size here."""

    def __init__(self, channels: int, layout, norm: str, dilation: int = 1) -> None:
        super().__init__(channels, layout, norm, dilation)
        self.dilation = dilation
        self.out_channels += channels

    def forward(self, x: Features) -> Features:
        return cat([*self.run_branches(x), max_pool(x, 3, self.dilation)])


class Mixed5b(_Branches):
    """What leads from the stem to the A blocks: three branches, and an average pooling before a fourth."""

    def __init__(self, norm: str) -> None:
        super().__init__(192, (((96, 1),), ((48, 1), (64, 5)), ((64, 1), (96, 3), (96, 3))), norm)
        self.branch3 = nn.ModuleList([_conv(192, 64, 1, norm)])
        self.out_channels += 64

    def forward(self, x: Any) -> Any:
        """(N, 192, H, W) -> (N, 320, H, W)."""
        pooled = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return torch.cat([*self.run_branches(x), conv(self.branch3[0], pooled, relu=True)], 1)


class InceptionResNet(LayerCascadeBackbone):
    """See the module. Names of modules are those of the network's usual PyTorch version."""

    def __init__(self, blocks: Sequence[int], norm: str) -> None:
        """
        Args:
            blocks: how many A, B and C blocks.
            norm: "BN", "FrozenBN" or "".
        """
        super().__init__()
        self.conv2d_1a = _conv(3, 32, 3, norm, stride=2)
        self.conv2d_2a, self.conv2d_2b = _conv(32, 32, 3, norm), _conv(32, 64, 3, norm)
        self.conv2d_3b, self.conv2d_4a = _conv(64, 80, 1, norm), _conv(80, 192, 3, norm)
        self.mixed_5b = Mixed5b(norm)
        self.repeat = nn.Sequential(*(InceptionBlock(320, _A, 0.17, norm) for _ in range(blocks[0])))
        self.mixed_6a = Reduction(320, _REDUCE_A, norm)
        self.repeat_1 = nn.Sequential(*(InceptionBlock(1088, _B, 0.10, norm, 2) for _ in range(blocks[1])))
        self.mixed_7a = Reduction(1088, _REDUCE_B, norm, 2)
        self.repeat_2 = nn.Sequential(*(InceptionBlock(2080, _C, 0.20, norm, 4) for _ in range(blocks[2] - 1)))
        self.block8 = InceptionBlock(2080, _C, 1.0, norm, 4, relu=False)
        self.channels = (self.mixed_6a.out_channels, self.mixed_7a.out_channels, 2080)

    def run_first(self, images: Tensor) -> Tensor:
        x = images
        for layer in (self.conv2d_1a, self.conv2d_2a, self.conv2d_2b):
            x = conv(layer, x, relu=True)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for layer in (self.conv2d_3b, self.conv2d_4a):
            x = conv(layer, x, relu=True)
        x = self.mixed_5b(F.max_pool2d(x, 3, stride=2, padding=1))
        return self.mixed_6a(self.repeat(x))

    def first_cost(self, height: int, width: int) -> float:
        halves: dict[int, tuple[nn.Module, ...]] = {
            2: (self.conv2d_1a, self.conv2d_2a, self.conv2d_2b),
            4: (self.conv2d_3b, self.conv2d_4a),
            8: (self.mixed_5b, self.repeat, self.mixed_6a),
        }
        return sum(
            layer.weight.numel() * -(-height // stride) * -(-width // stride)
            for stride, parts in halves.items()
            for part in parts
            for layer in part.modules()
            if isinstance(layer, nn.Conv2d)
        )

    def later_parts(self, stage: int) -> list[nn.Module]:
        return [*self.repeat_1, self.mixed_7a] if stage == 1 else [*self.repeat_2, self.block8]

    def run_parts(self, stage: int, parts: list[nn.Module], x: Features) -> Features:
        given = x
        if isinstance(x, Tensor):
            # Blocks without gradient overwrite their input, which belongs to somebody else.
            x = x if torch.is_grad_enabled() else x.clone(memory_format=torch.preserve_format)
        else:
            x = replace(x, table=None, source=None)
        for part in parts:
            carried = isinstance(part, Reduction) and isinstance(given, Pixels) and given.table is not None
            x = part(surround(x, given) if carried else x)
        return x


@BACKBONE_REGISTRY.register()
@notices_keys
def build_cascade_inception_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> InceptionResNet:
    """Inception-ResNet-v2 from MODEL.INCEPTION_RESNET.{BLOCKS, NORM}.

    Raises:
        ValueError: images without three channels, other than three numbers of blocks, or a norm that does not go with
            regions.
    """
    keys = cfg.MODEL.INCEPTION_RESNET
    if input_shape.channels != 3:
        raise ValueError(f"Inception-ResNet takes images of 3 channels, MODEL.PIXEL_MEAN has {input_shape.channels}.")
    if len(keys.BLOCKS) != 3 or min(keys.BLOCKS) < 1:
        raise ValueError(f"MODEL.INCEPTION_RESNET.BLOCKS is {list(keys.BLOCKS)}: give three numbers of at least 1.")
    check_norm("MODEL.INCEPTION_RESNET.NORM", keys.NORM)
    return InceptionResNet(keys.BLOCKS, keys.NORM)
