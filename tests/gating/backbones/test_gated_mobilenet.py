"""Gated MobileNetV2: the plain network, its groups and its blocks."""

import pytest
import torch
from gated_nets import build, force, gated_cfg, random_choices, settle
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import mobilenet_v2

from dyn_d2.checkpoint.torchvision_names import from_torchvision
from dyn_d2.gating import recording
from dyn_d2.gating.backbones.cdb_blocks import GroupSumBlock

FEATURES = ["stage1", "stage2", "stage3", "stage4", "stage5", "last"]


def mobile_cfg(unit: str, groups: int = 1, width: float = 1.0, features=FEATURES, name="", **keys):
    return gated_cfg(
        name or "build_gated_mobilenetv2_backbone",
        MODEL__GATED__UNIT=unit,
        MODEL__GATED__GROUPS=groups,
        MODEL__GATED__WIDTH_MULT=width,
        MODEL__RESNETS__OUT_FEATURES=list(features),
        **keys,
    )


@pytest.mark.parametrize("unit", ["group", "block"])
@pytest.mark.parametrize("width", [1.0, 1.4])
def test_one_group_is_the_network_of_torchvision(unit, width):
    plain = settle(mobilenet_v2(width_mult=width)).eval()
    backbone = build(mobile_cfg(unit, width=width)).eval()
    weights = from_torchvision(plain.state_dict())
    report = backbone.load_state_dict(weights, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in report.missing_keys)
    assert {name.partition(".")[0] for name in report.unexpected_keys} == {"linear"}
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)["last"], plain.features(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width, channels", [(1.0, (16, 24, 32, 96, 320, 1280)), (1.4, (24, 32, 48, 136, 448, 1792))])
def test_features(width, channels):
    backbone = build(mobile_cfg("group", 2, width)).eval()
    shapes = backbone.output_shape()
    assert tuple(shapes[name].channels for name in FEATURES) == channels
    assert [shapes[name].stride for name in FEATURES] == [2, 4, 8, 16, 32, 32]
    with torch.no_grad():
        for name, value in backbone(torch.randn(1, 3, 64, 64)).items():
            assert value.shape[1:] == (shapes[name].channels, *[64 // shapes[name].stride] * 2)


def masked_network(backbone, images, choices) -> torch.Tensor:
    """Every group of every block is computed, and multiplied by its gate."""
    x, number = backbone.stem(images), 0
    for stage in backbone.stage_names:
        for block in getattr(backbone, stage):
            if not isinstance(block, GroupSumBlock):
                x = block(x)
                continue
            gate, number = choices[number].float().reshape(len(x), -1), number + 1
            residual = block.stride == 1 and block.in_channels == block.out_channels
            out = x if residual else 0
            if not residual:
                gate = torch.cat([torch.ones(len(x), 1), gate], 1)
            for n, branch in enumerate(block.groups):
                out = out + gate[:, n, None, None, None] * branch(x)
            x = out
    return x


@pytest.mark.parametrize("unit, groups", [("group", 2), ("group", 3), ("group", 4), ("group", 1), ("block", 1)])
def test_network_equals_masked_execution_and_trace_counts_what_ran(unit, groups):
    backbone = settle(build(mobile_cfg(unit, groups, features=["last"]))).eval()
    units = backbone.policy.units
    assert len(units) == (10 if groups == 1 else 16)
    assert {unit.size for unit in units} == ({1} if groups == 1 else {groups, groups - 1})
    images = torch.randn(3, 3, 32, 32)
    choices = random_choices(backbone, 3)
    choices[0][:], choices[3][:] = False, True
    force(backbone, choices)
    with torch.no_grad(), recording() as trace, FlopCounterMode(display=False) as counter:
        out = backbone(images)["last"]
    with torch.no_grad():
        torch.testing.assert_close(out, masked_network(backbone, images, choices), rtol=1e-4, atol=1e-5)
    assert counter.get_total_flops() == 2 * float(trace.executed().double().sum())
    assert trace.dense() > float(trace.executed().max())


def test_groups_cost_about_as_much_as_the_plain_block():
    """Equal for 1x1 and depthwise convolutions alike: E / N hidden channels in each of N groups."""
    dense = []
    for groups in (1, 2, 3):
        backbone = build(mobile_cfg("group", groups, features=["last"])).eval()
        with torch.no_grad(), recording() as trace:
            backbone(torch.randn(1, 3, 32, 32))
        dense.append(trace.dense())
    assert dense[0] == dense[1] == dense[2]


def test_training_step():
    backbone = build(mobile_cfg("group", 2)).train()
    force(backbone, random_choices(backbone, 4))
    sum(value.square().mean() for value in backbone(torch.randn(4, 3, 32, 32)).values()).backward()
    assert all(parameter.grad is not None for parameter in backbone.stage1.parameters())


def test_under_a_feature_pyramid():
    names = ["stage2", "stage3", "stage4", "stage5"]
    cfg = mobile_cfg("group", 2, features=names, name="build_gated_fpn_backbone")
    cfg.MODEL.GATED.BOTTOM_UP, cfg.MODEL.FPN.IN_FEATURES = "build_gated_mobilenetv2_backbone", names
    features = build(cfg).eval()(torch.randn(1, 3, 64, 64))
    assert [value.shape[-1] for value in features.values()] == [16, 8, 4, 2, 1]


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"unit": "channel"}, "MODEL.GATED.UNIT"),
        ({"unit": "group", "groups": 0}, "MODEL.GATED.GROUPS"),
        ({"unit": "group", "width": 0.0}, "MODEL.GATED.WIDTH_MULT"),
    ],
)
def test_wrong_keys(keys, message):
    with pytest.raises(ValueError, match=message):
        build(mobile_cfg(**keys))
