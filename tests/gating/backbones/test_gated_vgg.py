"""Gated VGG16-BN."""

import pytest
import torch
import torchvision
from torch import nn

from dyn_d2.config import add_dyn_d2_config
from dyn_d2.gating import Decision, recording
from dyn_d2.gating.backbones.vgg import GatedVGG, widths_of
from dyn_d2.gating.policies.all_open import AllOpen
from dyn_d2.gating.policies.base import Policy

from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_backbone

TINY = ((4, 6), (6, 8), (8, 8, 8))


def vgg_cfg(**gated):
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_gated_vgg_backbone", 0
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.OUT_FEATURES = "BN", []
    cfg.MODEL.GATED.UNIT = "channel"
    for key, value in gated.items():
        cfg.MODEL.GATED[key] = value
    return cfg


def build(**gated) -> GatedVGG:
    return build_backbone(vgg_cfg(**gated), ShapeSpec(channels=3))


class Random(Policy):
    """Half of the channels, the same at every call."""

    def decide(self, index, features, state):
        generator = torch.Generator().manual_seed(index)
        gate = torch.rand(len(features), self.units[index].size, generator=generator)
        return Decision(gate * (gate > 0.5))


def with_running_statistics(net: nn.Module) -> nn.Module:
    net.train()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    return net


def test_weights_of_torchvision_fit_by_name_and_give_its_features():
    net, source = build().eval(), torchvision.models.vgg16_bn().eval()
    weights = {key: value for key, value in source.state_dict().items() if key.startswith("features.")}
    assert set(weights) == set(net.state_dict())
    net.load_state_dict(weights)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), recording() as trace:
        torch.testing.assert_close(net(images)["stage5"], source.features(images), atol=1e-4, rtol=1e-4)
    plain = sum(
        layer.weight.numel() * (64 // 2**stage) ** 2
        for stage, layers in enumerate(net._stages)
        for layer in (net.features[i] for i in layers)
        if isinstance(layer, nn.Conv2d)
    )
    assert trace.dense() == plain == trace.executed()[0]


def test_evaluation_computes_what_training_masks():
    net = GatedVGG(3, TINY, Random, out_features=["stage1", "stage3"])
    images = torch.randn(3, 3, 24, 16)
    with torch.no_grad():
        with recording() as masked:
            dense = with_running_statistics(net)(images)
        with recording() as trace:
            sparse = net.eval()(images)
    assert list(sparse) == ["stage1", "stage3"]
    for name, feature in sparse.items():
        torch.testing.assert_close(feature, dense[name], atol=1e-5, rtol=1e-5)
        shape = net.output_shape()[name]
        assert feature.shape[1:] == (shape.channels, 24 // shape.stride, 16 // shape.stride)
    opened = [step.decision.open.double().sum(1) for step in trace.steps]
    pixels = [24 * 16] * 2 + [12 * 8] * 2 + [6 * 4] * 3
    expected = sum(9 * a * b * p for a, b, p in zip([3.0, *opened], opened, pixels, strict=False))
    torch.testing.assert_close(trace.executed().double(), expected)
    torch.testing.assert_close(trace.executed(), masked.executed())
    assert [step.unit.name for step in trace.steps][:3] == ["conv1_1", "conv1_2", "conv2_1"]


def test_no_image_and_gradients():
    net = GatedVGG(3, TINY, Random)
    assert net.eval()(torch.randn(0, 3, 16, 16))["stage3"].shape == (0, 8, 2, 2)
    net.train()(torch.randn(0, 3, 16, 16))
    assert not any(buffer.isnan().any() for buffer in net.buffers())
    net(torch.randn(2, 3, 16, 16))["stage3"].sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_last_stages_are_left_out_and_first_ones_frozen():
    net = GatedVGG(3, TINY, AllOpen, out_features=["stage2"], freeze_at=1)
    assert len(net.policy.units) == 4 and list(net.output_shape()) == ["stage2"]
    frozen = [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
    assert frozen == ["features.0.weight", "features.0.bias", "features.3.weight", "features.3.bias"]
    assert not isinstance(net.features[1], nn.BatchNorm2d) and isinstance(net.features[8], nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("layers", "factor", "million"), [("W1-High", 3, 24.15), ("W1-Mid", 9, 24.16), ("W4-Low", 5.66, 24.18)]
)
def test_widened_as_in_table_3_4(layers, factor, million):
    net = build(WIDEN=float(factor), WIDEN_LAYERS=layers)
    total = sum(parameter.numel() for parameter in net.parameters()) + 512 * 100 + 100
    assert abs(total / 1e6 - million) < 0.08


@pytest.mark.parametrize(
    ("widths", "million", "multiply_adds"),
    [
        ([514, 514, 610, 610, 256, 256, 256, *[512] * 6], 24.18, 43.16),
        ([140, 140, 279, 279, *[320] * 3, *[640] * 6], 24.18, 8.15),
    ],
)
def test_widths_that_give_rows_of_table_3_4(widths, million, multiply_adds):
    """Counted by hand, without gates: 32 x 32 pixels, 100 classes."""
    stages = widths_of(CfgNode({"WIDTHS": widths, "WIDEN": 1.0, "WIDEN_LAYERS": "W13-All"}))
    assert [len(stage) for stage in stages] == [2, 2, 3, 3, 3] and sum(stages, []) == widths
    parameters, spent, before = 100.0, 0.0, 3
    for side, stage in zip((32, 16, 8, 4, 2), stages, strict=True):
        for channels in stage:
            parameters += 9 * before * channels + 2 * channels
            spent += 9 * before * channels * side**2
            before = channels
    assert (parameters + 100 * before) / 1e6 == pytest.approx(million, abs=0.06)
    assert (spent + 100 * before) / 1e8 == pytest.approx(multiply_adds, rel=0.001)


@pytest.mark.parametrize(
    ("gated", "message"),
    [
        ({"UNIT": "channel", "WIDTHS": [64, 64]}, "WIDTHS has 2 numbers"),
        ({"UNIT": "channel", "WIDTHS": [64] * 13, "WIDEN": 2.0}, "leave MODEL.GATED.WIDEN at 1.0"),
        ({"UNIT": "block"}, "MODEL.GATED.UNIT is 'block'"),
        ({"UNIT": "channel", "WIDEN_LAYERS": "all"}, "use one of W1-High, W1-Mid, W4-Low, W13-All"),
    ],
)
def test_wrong_keys(gated, message):
    with pytest.raises(ValueError, match=message):
        build(**gated)


def test_wrong_features_norm_and_images():
    with pytest.raises(ValueError, match="features stage1, stage2, stage3, not res4"):
        GatedVGG(3, TINY, AllOpen, out_features=["res4"])
    with pytest.raises(ValueError, match="NORM cannot be empty"):
        GatedVGG(3, TINY, AllOpen, norm="")
    with pytest.raises(ValueError, match="VGG needs at least 8 on each side"):
        GatedVGG(3, TINY, AllOpen)(torch.randn(1, 3, 7, 16))
