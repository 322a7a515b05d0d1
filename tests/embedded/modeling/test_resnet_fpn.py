"""ResNet and FPN: shapes, freezing, naming of parameters, and the checks of what was asked for."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, Backbone, ResNet, build_backbone, make_stage
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock

BAD_INPUT = (ValueError, AssertionError, NotImplementedError, KeyError)


def resnet_config(depth: int, **keys):
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    for key, value in keys.items():
        cfg.MODEL.RESNETS[key] = value
    return cfg


def fpn_config(name: str, depth: int = 18, **keys):
    cfg = resnet_config(depth)
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    for key, value in keys.items():
        cfg.MODEL.FPN[key] = value
    return cfg


@pytest.mark.parametrize(
    ("depth", "convs"), [(18, 20), (34, 36), (50, 53), (101, 104), (152, 155)]
)  # layers without the classifier, with the projection shortcuts
def test_depth_is_the_number_of_layers(depth, convs):
    net = build_backbone(resnet_config(depth))
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == convs


@pytest.mark.parametrize("dilation", [1, 2])
def test_output_shape_tells_the_truth(dilation):
    net = build_backbone(resnet_config(50, RES5_DILATION=dilation, OUT_FEATURES=["stem", "res3", "res5"])).eval()
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        features = net(image)
    assert list(features) == ["stem", "res3", "res5"]
    for name, spec in net.output_shape().items():
        assert features[name].shape == (1, spec.channels, 64 // spec.stride, 96 // spec.stride)
    assert net.output_shape()["res5"].stride == 32 // dilation


def test_stages_that_no_feature_needs_are_left_out():
    net = build_backbone(resnet_config(18, OUT_FEATURES=["res3"]))
    assert {name.split(".")[0] for name, _ in net.named_parameters()} <= {"stem", "res2", "res3"}


def test_bottleneck_is_its_definition():
    block = BottleneckBlock(8, 16, bottleneck_channels=4, stride=2, num_groups=2, norm="", dilation=2)
    x = torch.randn(2, 8, 9, 9)
    y = F.relu(F.conv2d(x, block.conv1.weight))
    y = F.relu(F.conv2d(y, block.conv2.weight, stride=2, padding=2, dilation=2, groups=2))
    y = F.conv2d(y, block.conv3.weight) + F.conv2d(x, block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x), F.relu(y))


@pytest.mark.parametrize("in_1x1", [True, False])
def test_stride_lies_where_it_was_asked_for(in_1x1):
    block = BottleneckBlock(8, 16, bottleneck_channels=4, stride=2, norm="", stride_in_1x1=in_1x1)
    assert (block.conv1.stride[0], block.conv2.stride[0]) == ((2, 1) if in_1x1 else (1, 2))


def test_equal_channels_have_no_projection():
    assert BasicBlock(8, 8).shortcut is None and BasicBlock(8, 9).shortcut is not None


@pytest.mark.parametrize("freeze_at", [0, 1, 2, 5])
def test_freeze_stops_parameters_and_batch_norm(freeze_at):
    cfg = resnet_config(18, NORM="BN")
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    net = build_backbone(cfg).train()
    parts = ["stem", "res2", "res3", "res4", "res5"]
    for i, part in enumerate(parts):
        frozen = i < freeze_at
        module = getattr(net, part)
        assert all(p.requires_grad != frozen for p in module.parameters())
        assert any(isinstance(m, nn.BatchNorm2d) for m in module.modules()) != frozen


def test_values_per_block_reach_their_block():
    blocks = make_stage(BasicBlock, 3, in_channels=4, out_channels=8, stride_per_block=[2, 1, 1], norm="")
    assert [block.stride for block in blocks] == [2, 1, 1]
    assert [block.in_channels for block in blocks] == [4, 8, 8]
    with pytest.raises(BAD_INPUT):
        make_stage(BasicBlock, 3, in_channels=4, out_channels=8, stride_per_block=[2, 1])
    with pytest.raises(BAD_INPUT):
        make_stage(BasicBlock, 1, in_channels=4, out_channels=8, stride_per_block=[2], stride=1)


def test_classifier_on_default_stages():
    stages = ResNet.make_default_stages(18, norm="BN")
    net = ResNet(BasicStem(norm="BN"), stages, num_classes=7).eval()
    assert net(torch.rand(2, 3, 32, 32))["linear"].shape == (2, 7)
    with pytest.raises(BAD_INPUT):
        net(torch.rand(3, 32, 32))


@pytest.mark.parametrize(
    "keys",
    [
        {"DEPTH": 77},
        {"RES5_DILATION": 3},
        {"DEPTH": 18, "RES2_OUT_CHANNELS": 256},
        {"DEPTH": 18, "NUM_GROUPS": 32},
        {"OUT_FEATURES": ["res9"]},
    ],
)
def test_impossible_networks_are_refused(keys):
    with pytest.raises(BAD_INPUT):
        build_backbone(resnet_config(50, **keys))


@pytest.mark.parametrize("fuse", ["sum", "avg"])
def test_fpn_is_its_definition(fuse):
    net = build_backbone(fpn_config("build_resnet_fpn_backbone", FUSE_TYPE=fuse)).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        got, below = net(image), net.bottom_up(image)
        above, want = None, {}
        for level in (5, 4, 3):
            merged = net.get_submodule(f"fpn_lateral{level}")(below[f"res{level}"])
            if above is not None:
                merged = merged + above.repeat_interleave(2, 2).repeat_interleave(2, 3)
                merged = merged / 2 if fuse == "avg" else merged
            above = merged
            want[f"p{level}"] = net.get_submodule(f"fpn_output{level}")(merged)
    want["p6"] = want["p5"][..., ::2, ::2]
    assert list(got) == ["p3", "p4", "p5", "p6"]
    for name, feature in want.items():
        torch.testing.assert_close(got[name], feature)
    assert net.size_divisibility == 32 and net.padding_constraints == {"square_size": 0}


def test_retinanet_fpn_adds_two_levels_from_res5():
    net = build_backbone(fpn_config("build_retinanet_resnet_fpn_backbone", NORM="GN"))
    features = net(torch.rand(1, 3, 128, 128))
    assert {name: f.shape[-1] for name, f in features.items()} == {"p3": 16, "p4": 8, "p5": 4, "p6": 2, "p7": 1}
    assert net.output_shape()["p7"].stride == 128
    assert net.fpn_lateral3.bias is None and net.top_block.p6.in_channels == 512
    sum(f.sum() for f in features.values()).backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_fpn_refuses_features_that_form_no_pyramid():
    bottom_up = build_backbone(resnet_config(18))
    for arguments in (
        {"in_features": ["res2", "res4"]},
        {"in_features": []},
        {"in_features": ["res2"], "fuse_type": "x"},
    ):
        with pytest.raises(BAD_INPUT):
            FPN(bottom_up, out_channels=8, **arguments)


def test_top_block_may_read_the_pyramid_or_the_backbone():
    class Tiny(Backbone):
        _out_features = ["res5"]
        _out_feature_channels = {"res5": 4}
        _out_feature_strides = {"res5": 32}

        def forward(self, x):
            return {"res5": x}

    x = torch.rand(1, 4, 8, 8)
    assert list(FPN(Tiny(), ["res5"], 6, top_block=LastLevelMaxPool())(x)) == ["p5", "p6"]
    assert FPN(Tiny(), ["res5"], 6, top_block=LastLevelP6P7(4, 6))(x)["p7"].shape == (1, 6, 2, 2)
    assert FPN(Tiny(), ["res5"], 6, top_block=LastLevelP6P7(6, 6, "p5"))(x)["p7"].shape == (1, 6, 2, 2)


def test_unknown_backbone_and_input_channels():
    cfg = resnet_config(18)
    assert build_backbone(cfg, ShapeSpec(channels=5)).stem.conv1.in_channels == 5
    cfg.MODEL.BACKBONE.NAME = "no_such_backbone"
    with pytest.raises(KeyError, match="no_such_backbone"):
        build_backbone(cfg)
