"""Residual networks (He et al., Deep Residual Learning for Image Recognition) of depth 18 to 152, ResNeXt included."""

from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.left_out import left_out

from .backbone import Backbone
from .build import BACKBONE_REGISTRY

ResNetBlockBase = CNNBlockBase  # the name that older projects import

_BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_STAGE_NAMES = ("res2", "res3", "res4", "res5")


def _blocks_per_stage(depth: int) -> tuple[int, ...]:
    if depth not in _BLOCKS_PER_STAGE:
        raise ValueError(f"ResNet depth {depth} is unknown: choose one of {sorted(_BLOCKS_PER_STAGE)}")
    return _BLOCKS_PER_STAGE[depth]


def _conv(cin: int, cout: int, kernel: int, norm, **kwargs) -> Conv2d:
    """Convolution without bias followed by normalisation."""
    return Conv2d(cin, cout, kernel_size=kernel, bias=False, norm=get_norm(norm, cout), **kwargs)


class _ResidualBlock(CNNBlockBase):
    """ReLU(branch(x) + shortcut(x)), where the shortcut is a 1x1 projection if the number of channels changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm) -> None:
        super().__init__(in_channels, out_channels, stride)
        project = in_channels != out_channels
        self.shortcut = _conv(in_channels, out_channels, 1, norm, stride=stride) if project else None

    def _init_weights(self, *branch: Conv2d) -> None:
        for conv in (*branch, self.shortcut):
            if conv is not None:
                weight_init.c2_msra_fill(conv)

    def _branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        out = self._branch(x)
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


class BasicBlock(_ResidualBlock):
    """Two 3x3 convolutions: the block of ResNet-18 and 34."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm="BN") -> None:
        """``stride`` is that of the first convolution; ``norm`` is anything that ``layers.get_norm`` takes."""
        super().__init__(in_channels, out_channels, stride, norm)
        self.conv1 = _conv(in_channels, out_channels, 3, norm, stride=stride, padding=1)
        self.conv2 = _conv(out_channels, out_channels, 3, norm, padding=1)
        self._init_weights(self.conv1, self.conv2)

    def _branch(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu_(self.conv1(x)))


class BottleneckBlock(_ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions: the block of ResNet-50, 101, 152 and of ResNeXt."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm="BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ) -> None:
        """
        Args:
            in_channels, out_channels, stride: of the whole block.
            bottleneck_channels, num_groups, dilation: of the 3x3 convolution.
            norm: anything that ``layers.get_norm`` takes.
            stride_in_1x1: put the stride into the first 1x1 convolution, as the original (MSRA) weights want it, and
                not into the 3x3 one, as torchvision's weights and ResNeXt do.
        """
        super().__init__(in_channels, out_channels, stride, norm)
        first, middle = (stride, 1) if stride_in_1x1 else (1, stride)
        width = bottleneck_channels
        self.conv1 = _conv(in_channels, width, 1, norm, stride=first)
        spatial = {"stride": middle, "padding": dilation, "dilation": dilation}
        self.conv2 = _conv(width, width, 3, norm, groups=num_groups, **spatial)
        self.conv3 = _conv(width, out_channels, 1, norm)
        self._init_weights(self.conv1, self.conv2, self.conv3)

    def _branch(self, x: Tensor) -> Tensor:
        return self.conv3(F.relu_(self.conv2(F.relu_(self.conv1(x)))))


class BasicStem(CNNBlockBase):
    """7x7 convolution and 3x3 max pooling, both of stride 2: images to features of stride 4."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm="BN") -> None:
        super().__init__(in_channels, out_channels, 4)
        self.conv1 = _conv(in_channels, out_channels, 7, norm, stride=2, padding=3)
        weight_init.c2_msra_fill(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class ResNet(Backbone):
    """A stem and up to four stages "res2" ... "res5", with a linear classifier on top if asked for."""

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: Sequence[Sequence[CNNBlockBase]],
        num_classes: int | None = None,
        out_features: Sequence[str] | None = None,
        freeze_at: int = 0,
    ) -> None:
        """
        Args:
            stem: the layers before the first residual block.
            stages: the blocks of each stage, see :meth:`make_stage`. Stages that no feature in ``out_features`` needs
                are left out: unused parameters cost memory and break distributed training.
            num_classes: adds average pooling and a linear layer with that many outputs, the feature "linear".
            out_features: names of the features to return, among "stem", "res2" ... and "linear"; None: the last one.
            freeze_at: see :meth:`freeze`.

        Raises:
            ValueError: a feature is asked for that this network does not have, or a stage is empty.
        """
        super().__init__()
        self.stem = stem
        self.num_classes = num_classes
        if out_features is not None and "linear" not in out_features:
            stages = stages[: max((_STAGE_NAMES.index(f) + 1 for f in out_features if f in _STAGE_NAMES), default=0)]
        if any(len(blocks) == 0 for blocks in stages):
            raise ValueError("every stage of a ResNet needs at least one block")

        stride, channels = stem.stride, stem.out_channels
        self._out_feature_strides, self._out_feature_channels = {"stem": stride}, {"stem": channels}
        self.stage_names = tuple(f"res{i}" for i in range(2, 2 + len(stages)))
        for name, blocks in zip(self.stage_names, stages, strict=True):
            self.add_module(name, nn.Sequential(*blocks))
            for block in blocks:
                stride *= block.stride
            channels = blocks[-1].out_channels
            self._out_feature_strides[name], self._out_feature_channels[name] = stride, channels

        known = ["stem", *self.stage_names]
        if num_classes is not None:
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.linear = nn.Linear(channels, num_classes)
            # Goyal et al., Accurate, Large Minibatch SGD, section 5.1
            nn.init.normal_(self.linear.weight, std=0.01)
            known.append("linear")
        self._out_features = list(out_features) if out_features is not None else known[-1:]
        missing = [f for f in self._out_features if f not in known]
        if missing or not self._out_features:
            raise ValueError(f"out_features {missing or '(empty)'} cannot be had from this ResNet: it offers {known}")
        self.freeze(freeze_at)

    @property
    def stages(self) -> list[nn.Sequential]:
        """The stages in order; looked up by name, so that a stage which was replaced is the one that runs."""
        return [getattr(self, name) for name in self.stage_names]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (N, C, H, W) to the features named in ``out_features``: maps (N, Ci, Hi, Wi), "linear" (N, K)."""
        if x.dim() != 4:
            raise ValueError(f"ResNet takes images of shape (N, C, H, W), not {tuple(x.shape)}")
        outputs = {}
        for name in ("stem", *self.stage_names):
            x = getattr(self, name)(x)
            if name in self._out_features:
                outputs[name] = x
        if "linear" in self._out_features:
            outputs["linear"] = self.linear(self.avgpool(x).flatten(1))
        return outputs

    def freeze(self, freeze_at: int = 0) -> "ResNet":
        """Freeze the first ``freeze_at`` parts: 1 is the stem, 2 the stem and res2, and so on.

        Parameters stop to require gradients and batch normalisation turns into FrozenBatchNorm2d.
        """
        parts = [[self.stem], *self.stages]
        for part in parts[: max(freeze_at, 0)]:
            for block in part:
                block.freeze()
        return self

    @staticmethod
    def make_stage(
        block_class: type[CNNBlockBase], num_blocks: int, *, in_channels: int, out_channels: int, **kwargs
    ) -> list[CNNBlockBase]:
        """Make the blocks of one stage.

        Args:
            block_class: class of all blocks.
            num_blocks: how many.
            in_channels: of the first block; every later one takes ``out_channels``.
            out_channels: of every block.
            kwargs: passed to every block; an argument ``x_per_block`` is a list with the value of ``x`` for each
                block, e.g. ``stride_per_block=[2, 1, 1]``.

        Raises:
            ValueError: such a list has not one value per block, or ``x`` is given as well.
        """
        lists = {key.removesuffix("_per_block"): kwargs.pop(key) for key in list(kwargs) if key.endswith("_per_block")}
        for key, values in lists.items():
            if len(values) != num_blocks:
                raise ValueError(f"{key}_per_block has {len(values)} values for {num_blocks} blocks")
            if key in kwargs:
                raise ValueError(f"make_stage got both {key} and {key}_per_block: give one of them")
        return [
            block_class(
                in_channels=in_channels if i == 0 else out_channels,
                out_channels=out_channels,
                **kwargs,
                **{key: values[i] for key, values in lists.items()},
            )
            for i in range(num_blocks)
        ]

    @staticmethod
    def make_default_stages(
        depth: int, block_class: type[CNNBlockBase] | None = None, **kwargs
    ) -> list[list[CNNBlockBase]]:
        """Make the four stages of the standard network of that depth (18, 34, 50, 101 or 152).

        ``block_class`` is by default :class:`BasicBlock` below 50 layers, else :class:`BottleneckBlock`; from 50 layers
        on it must take ``bottleneck_channels``. ``kwargs`` are further arguments of :meth:`make_stage`.
        """
        deep = depth >= 50
        block_class = block_class or (BottleneckBlock if deep else BasicBlock)
        return _make_stages(depth, block_class, 64, 256 if deep else 64, width=64, **kwargs)


def _make_stages(
    depth: int, block_class: type, channels: int, out_channels: int, width: int, res5_dilation: int = 1, **kwargs
) -> list[list[CNNBlockBase]]:
    """Four stages, each twice as wide as the one before; a dilated res5 keeps the resolution of res4 (R-FCN)."""
    stages = []
    for i, count in enumerate(_blocks_per_stage(depth)):
        dilated = i == 3 and res5_dilation > 1
        arguments = {**kwargs, "stride_per_block": [1 if i == 0 or dilated else 2] + [1] * (count - 1)}
        if depth >= 50:
            arguments["bottleneck_channels"] = width * 2**i
        if dilated:
            arguments["dilation"] = res5_dilation
        stages.append(
            ResNet.make_stage(block_class, count, in_channels=channels, out_channels=out_channels, **arguments)
        )
        channels, out_channels = out_channels, 2 * out_channels
    return stages


def make_stage(*args, **kwargs) -> list[CNNBlockBase]:
    """:meth:`ResNet.make_stage` under the name that older projects import."""
    return ResNet.make_stage(*args, **kwargs)


def _check_resnet_config(cfg: CfgNode) -> None:
    """Raise an error that names the key if ``cfg.MODEL.RESNETS`` asks for a network that cannot be built."""
    res = cfg.MODEL.RESNETS
    _blocks_per_stage(res.DEPTH)
    if any(res.DEFORM_ON_PER_STAGE):
        raise left_out("MODEL.RESNETS.DEFORM_ON_PER_STAGE", "deformable convolution")
    if res.RES5_DILATION not in (1, 2):
        raise ValueError(f"MODEL.RESNETS.RES5_DILATION must be 1 or 2, not {res.RES5_DILATION}")
    if res.DEPTH < 50:
        for key, needed in (("RES2_OUT_CHANNELS", 64), ("RES5_DILATION", 1), ("NUM_GROUPS", 1)):
            if res[key] != needed:
                raise ValueError(f"ResNet-{res.DEPTH} needs MODEL.RESNETS.{key} = {needed}, not {res[key]}")


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build a ResNet from ``cfg.MODEL.RESNETS`` and ``cfg.MODEL.BACKBONE.FREEZE_AT``.

    Raises:
        ValueError: a key has a value that the chosen depth does not allow.
        NotImplementedError: deformable convolution is asked for.
    """
    _check_resnet_config(cfg)
    res = cfg.MODEL.RESNETS
    stem = BasicStem(input_shape.channels, res.STEM_OUT_CHANNELS, norm=res.NORM)
    block_class, arguments = BasicBlock, {}
    if res.DEPTH >= 50:
        block_class = BottleneckBlock
        arguments = {"num_groups": res.NUM_GROUPS, "stride_in_1x1": res.STRIDE_IN_1X1}
    stages = _make_stages(
        res.DEPTH,
        block_class,
        res.STEM_OUT_CHANNELS,
        res.RES2_OUT_CHANNELS,
        width=res.NUM_GROUPS * res.WIDTH_PER_GROUP,
        res5_dilation=res.RES5_DILATION,
        norm=res.NORM,
        **arguments,
    )
    return ResNet(stem, stages, out_features=res.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
