"""CDB's blocks: sizes of Table 1, and what they compute in a network."""

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from gated_nets import build, force, gated_cfg, random_choices, settle
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dyn_d2.gating import recording
from dyn_d2.gating.backbones.cdb_blocks import CDBBlock, bottleneck_width

from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("groups, widths", [(2, (38, 76, 152, 304)), (3, (30, 60, 120, 240)), (4, (24, 48, 96, 192))])
def test_widths_of_table_1(groups, widths):
    assert tuple(bottleneck_width(plain, groups) for plain in (64, 128, 256, 512)) == widths


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 5, 6, 8])
def test_bottleneck_groups_have_about_the_parameters_of_the_plain_block(groups):
    plain = BottleneckBlock(256, 256, bottleneck_channels=64, norm="")
    block = CDBBlock(256, 256, bottleneck_channels=64, groups=groups, norm="")
    assert abs(count(block) / count(plain) - 1) < 0.08
    assert (count(block) == count(plain)) == (groups == 1)


@pytest.mark.parametrize("in_channels, stride", [(16, 1), (8, 2)])
def test_basic_groups_have_the_parameters_of_the_plain_block(in_channels, stride):
    plain = BasicBlock(in_channels, 16, stride=stride, norm="")
    for groups in (1, 2, 4):
        assert count(CDBBlock(in_channels, 16, stride=stride, groups=groups, norm="")) == count(plain)


# Totals as we calculate them, with controllers (16 blocks of up to 0.07 M) and the classifier of 2.05 M; the paper (Su
# et al.) prints 24.67, 25.81 and 25.81 M.
@pytest.mark.parametrize("groups, total", [(2, 24.45), (3, 26.01), (4, 25.83)])
def test_parameters_of_cdb_50(groups, total):
    cfg = gated_cfg(
        MODEL__RESNETS__DEPTH=50,
        MODEL__RESNETS__RES2_OUT_CHANNELS=256,
        MODEL__GATED__UNIT="group",
        MODEL__GATED__GROUPS=groups,
    )
    with torch.device("meta"):
        backbone = build(cfg)
    assert len(backbone.policy.units) == 16 and all(unit.size == groups for unit in backbone.policy.units)
    inputs = [unit.channels for unit in backbone.policy.units]
    controllers = sum(32 * channels + 32 * 32 + 32 * 2 * groups + 2 * groups for channels in inputs)
    assert abs((count(backbone) + controllers + 2048 * 1000 + 1000) / 1e6 - total) < 0.01


@pytest.mark.parametrize("arguments", [{"bottleneck_channels": 8}, {"bottleneck_channels": 0}])
@pytest.mark.parametrize("in_channels, stride, dilation", [(16, 1, 1), (8, 2, 1), (16, 1, 2)])
def test_one_group_is_the_block_of_resnet(arguments, in_channels, stride, dilation):
    block = settle(CDBBlock(in_channels, 16, groups=1, stride=stride, dilation=dilation, **arguments)).eval()
    if arguments["bottleneck_channels"]:
        plain = BottleneckBlock(in_channels, 16, stride=stride, dilation=dilation, norm="BN", **arguments)
    elif dilation == 1:
        plain = BasicBlock(in_channels, 16, stride=stride, norm="BN")
    else:
        pytest.skip("Detectron2's basic block has no dilation")
    plain.load_state_dict({key.removeprefix("groups.0."): value for key, value in block.state_dict().items()})
    x = torch.randn(2, in_channels, 8, 8)
    with torch.no_grad():
        out = F.relu(block.groups[0](x) + (x if block.shortcut is None else block.shortcut(x)))
        torch.testing.assert_close(out, plain.eval()(x))


def masked_network(backbone: nn.Module, images: torch.Tensor, choices) -> dict[str, torch.Tensor]:
    """Every group of every block is computed, and multiplied by its gate."""
    x, features, number = backbone.stem(images), {}, 0
    for stage in backbone.stage_names:
        for block in getattr(backbone, stage):
            out = x if block.shortcut is None else block.shortcut(x)
            for n, branch in enumerate(block.groups):
                out = out + choices[number][:, n, None, None, None].to(x.dtype) * branch(x)
            x, number = F.relu(out), number + 1
        features[stage] = x
    return features


def tiny_cfg(depth: int, groups: int, **keys):
    name = "build_gated_cifar_resnet_backbone" if depth == 8 else "build_gated_resnet_backbone"
    res = {"DEPTH": depth, "OUT_FEATURES": ["res2", "res3", "res4"]}
    if depth == 50:
        res |= {"STEM_OUT_CHANNELS": 16, "RES2_OUT_CHANNELS": 32, "WIDTH_PER_GROUP": 8}
    res = {f"MODEL__RESNETS__{key}": value for key, value in res.items()}
    return gated_cfg(name, MODEL__GATED__UNIT="group", MODEL__GATED__GROUPS=groups, **res, **keys)


@pytest.mark.parametrize("depth, groups", [(50, 4), (50, 2), (18, 2), (8, 3)])
def test_network_equals_masked_execution_and_trace_counts_what_ran(depth, groups):
    backbone = settle(build(tiny_cfg(depth, groups))).eval().double()  # 16 blocks would add up errors of float32
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    choices = random_choices(backbone, 3)
    choices[1][:], choices[2][:] = False, True
    force(backbone, choices)
    with torch.no_grad(), recording() as trace:
        features = backbone(images)
    with torch.no_grad():
        expected = masked_network(backbone, images, choices)
    for name, value in features.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone(images)
    assert counter.get_total_flops() == 2 * float(trace.executed().double().sum())


@pytest.mark.parametrize("depth, groups", [(50, 4), (8, 2)])
def test_all_open_counts_as_fvcore_does(depth, groups):
    backbone = build(tiny_cfg(depth, groups)).eval()
    images = torch.randn(1, 3, 32, 32)
    with recording() as trace:
        backbone(images)
    analysis = FlopCountAnalysis(backbone, images).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none").set_op_handle("aten::batch_norm", None)
    assert analysis.by_operator()["conv"] == trace.dense() == float(trace.executed())


def test_training_step_and_frozen_norms():
    backbone = build(tiny_cfg(8, 2))
    sum(value.sum() for value in backbone.train()(torch.randn(2, 3, 16, 16)).values()).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    backbone.freeze(2)
    assert isinstance(backbone.res2[0].groups[0].conv1.norm, FrozenBatchNorm2d)


def test_no_groups():
    with pytest.raises(ValueError, match="MODEL.GATED.GROUPS is 0"):
        CDBBlock(8, 8, groups=0)
