"""VGG16 with batch norm in which a policy chooses the channels of all 13 convolutions per image, as in DeepMoE."""

from collections.abc import Callable, Sequence
from functools import partial

import fvcore.nn.weight_init as weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.config.applied import notices_keys
from dyn_d2.gating import Cost, Router, Unit
from dyn_d2.gating.channels import apply_gate, chain_costs, sparse_conv, unpack
from dyn_d2.gating.execution import running_statistics, single_value
from dyn_d2.gating.exporting import is_exporting
from dyn_d2.gating.policies.base import Policy, build_policy
from dyn_d2.modeling.shapes import channels_of
from dyn_d2.ops import channel_conv

from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, Backbone

from .moe_blocks import channel_norm

# Channels of the convolutions of each stage; a stage ends with max pooling.
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

# Which convolutions are widened, from 0: rows of DeepMoE's Table 3.4. Its appendix is lost; the parameters and
# multiply-adds of the first two rows are those of the 12th convolution times 3 and of the 6th times 9. The same number
# of parameters (24.2 million) comes from a factor of 5.66 for the lowest four and of 1.28 for all, with fewer
# multiply-adds than the table has: docs/deepmoe.md names widths that give both (MODEL.GATED.WIDTHS).
WIDENED = {"W1-High": (11,), "W1-Mid": (5,), "W4-Low": (0, 1, 2, 3), "W13-All": tuple(range(13))}


class GatedVGG(Backbone):
    """VGG16-BN with a gate after the ReLU of every convolution; the next one reads the open channels only.

    ``features`` is built like torchvision's, so that the weights of its ``vgg16_bn`` fit where nothing is widened.
    All gates are decided before the first convolution: what the policy sees are the images.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[Sequence[int]],
        make_policy: Callable[[list[Unit]], Policy],
        *,
        norm="BN",
        out_features: Sequence[str] | None = None,
        freeze_at: int = 0,
    ) -> None:
        """
        Args:
            widths: channels of the convolutions of each stage.
            make_policy: gives the policy for a list of units, e.g. ``functools.partial(build_policy, cfg)``.
            norm: anything that ``layers.get_norm`` takes, as long as it treats each channel by itself.
            out_features: names out of "stage1" (stride 2) ... "stage5" (stride 32); None: the last. Stages after the
                last one of them are left out.
            freeze_at: how many stages to freeze, from the front.

        Raises:
            ValueError: there is no such feature, or no norm.
        """
        super().__init__()
        names = [f"stage{number + 1}" for number in range(len(widths))]
        self._out_features = list(out_features) if out_features else names[-1:]
        unknown = [name for name in self._out_features if name not in names]
        if unknown:
            raise ValueError(f"this backbone has the features {', '.join(names)}, not {', '.join(unknown)}.")
        if not norm:
            raise ValueError("a gated VGG has batch norm after each convolution: MODEL.RESNETS.NORM cannot be empty.")
        self.stage_names = names[: 1 + max(names.index(name) for name in self._out_features)]
        layers: list[nn.Module] = []
        units: list[Unit] = []
        self._stages: list[range] = []  # of the layers in ``features``
        for number, stage in enumerate(widths[: len(self.stage_names)]):
            start = len(layers)
            for i, width in enumerate(stage):
                conv = nn.Conv2d(in_channels, width, kernel_size=3, padding=1)
                weight_init.c2_msra_fill(conv)
                layer_norm = channel_norm(norm, width)
                assert layer_norm is not None  # see above
                layers += [conv, layer_norm, nn.ReLU(inplace=True)]
                units.append(Unit(f"conv{number + 1}_{i + 1}", "channel", 3, width, number))
                in_channels = width
            layers.append(nn.MaxPool2d(2))
            self._stages.append(range(start, len(layers)))
        self.features = nn.Sequential(*layers)
        self._out_feature_strides = {name: 2 ** (i + 1) for i, name in enumerate(names)}
        self._out_feature_channels = {name: stage[-1] for name, stage in zip(names, widths, strict=True)}
        self.policy = make_policy(units)
        self.freeze(freeze_at)

    def freeze(self, freeze_at: int) -> "GatedVGG":
        """Freeze the first stages: no gradients, and batch norm turned into a constant. Gates are not frozen."""
        for stage in self._stages[: max(freeze_at, 0)]:
            for index in stage:
                layer = self.features[index].requires_grad_(False)
                self.features[index] = FrozenBatchNorm2d.convert_frozen_batchnorm(layer)
        return self

    def train(self, mode: bool = True) -> "GatedVGG":
        """As usual; before evaluation on the CPU also compiles what that needs, so that no forward pass has to."""
        if not mode and self._conv(0).weight.device.type == "cpu":
            channel_conv.load()
        return super().train(mode)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> name -> feature map, as ``output_shape`` describes them.

        Raises:
            ValueError: the images are smaller than the stride of the last feature.
        """
        smallest = 2 ** len(self._stages)
        if min(images.shape[-2:]) < smallest:
            raise ValueError(
                f"images of {tuple(images.shape[-2:])} pixels: VGG needs at least {smallest} on each side."
            )
        router = Router(self.policy, images)
        decisions = [router.decide(images) for _ in self.policy.units]
        gated = iter(zip(self.policy.units, decisions, strict=True))
        x, features = images, dict[str, Tensor]()
        x_gate: Tensor | None = None
        for name, stage in zip(self.stage_names, self._stages, strict=True):
            *convs, pool = stage
            for index in convs[::3]:
                unit, decision = next(gated)
                conv, norm = self._conv(index), self.features[index + 1]
                dense, executed = chain_costs([conv], [decision.gate], x.shape[-2:], x_gate)
                router.trace.costs.append(Cost(unit.name, dense, executed, executed))
                x, x_gate = self._layer(x, conv, norm, x_gate, decision.gate), decision.gate
            x = self.features[pool](x)
            if name in self._out_features:
                assert x_gate is not None  # each stage has a convolution
                features[name] = x if self.training or is_exporting() else unpack(x, x_gate)
        return features

    def _conv(self, index: int) -> nn.Conv2d:
        layer = self.features[index]
        assert isinstance(layer, nn.Conv2d)
        return layer

    def _layer(self, x: Tensor, conv: nn.Conv2d, norm: nn.Module, x_gate: Tensor | None, gate: Tensor) -> Tensor:
        if is_exporting():  # which knows no channels that come and go
            return apply_gate(F.relu(norm(conv(x))), gate)
        if self.training:
            x = conv(x)
            with running_statistics(norm, single_value(x)):
                return apply_gate(F.relu_(norm(x)), gate)
        return sparse_conv(x, conv, norm, x_gate, gate)


def widths_of(gated: CfgNode) -> list[list[int]]:
    """Channels of the convolutions of each stage, from MODEL.GATED.

    Raises:
        ValueError: WIDTHS has another length, or stands beside WIDEN.
    """
    plain = [channels for stage in VGG16 for channels in stage]
    wide = WIDENED[gated.WIDEN_LAYERS]
    flat = list(gated.WIDTHS) or [round(c * gated.WIDEN) if i in wide else c for i, c in enumerate(plain)]
    if len(flat) != len(plain):
        raise ValueError(f"MODEL.GATED.WIDTHS has {len(flat)} numbers: VGG-16 has {len(plain)} convolutions.")
    if gated.WIDTHS and gated.WIDEN != 1:
        raise ValueError(f"MODEL.GATED.WIDTHS says all: leave MODEL.GATED.WIDEN at 1.0, not {gated.WIDEN}.")
    rest = iter(flat)
    return [[next(rest) for _ in stage] for stage in VGG16]


@BACKBONE_REGISTRY.register()
@notices_keys
def build_gated_vgg_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GatedVGG:
    """VGG16-BN from MODEL.RESNETS.{NORM, OUT_FEATURES}, MODEL.GATED.{WIDEN, WIDEN_LAYERS, WIDTHS} and MODEL.POLICY;
    features stage1 ... stage5. MODEL.BACKBONE.FREEZE_AT counts stages.

    Raises:
        ValueError: MODEL.GATED.UNIT, WIDEN_LAYERS or WIDTHS has a value that cannot be.
    """
    gated = cfg.MODEL.GATED
    if gated.UNIT != "channel":
        raise ValueError(f'MODEL.GATED.UNIT is {gated.UNIT!r}: what can be switched off in a VGG is "channel".')
    if gated.WIDEN_LAYERS not in WIDENED:
        raise ValueError(f"MODEL.GATED.WIDEN_LAYERS is {gated.WIDEN_LAYERS!r}: use one of {', '.join(WIDENED)}.")
    return GatedVGG(
        channels_of(input_shape),
        widths_of(gated),
        partial(build_policy, cfg),
        norm=cfg.MODEL.RESNETS.NORM,
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
