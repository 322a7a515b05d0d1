"""DarkNet-19: its layers as the paper lists them."""

import pytest
import torch
from torch import nn

from dyn_d2.config.read import read_cfg
from dyn_d2.methods.fsrw.darknet import DarkNet19

from detectron2.modeling import build_backbone


def test_layers_are_those_of_the_paper():
    net = DarkNet19()
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    widths = [32, 64, 128, 64, 128, 256, 128, 256, 512, 256, 512, 256, 512, 1024, 512, 1024, 512, 1024]
    assert [conv.out_channels for conv in convs] == widths
    assert [conv.kernel_size[0] for conv in convs] == [3, 3, 3, 1, 3, 3, 1, 3, 3, 1, 3, 1, 3, 3, 1, 3, 1, 3]
    assert list(dict(net.named_children())) == [f"conv{i}" for i in range(1, 19)]
    # A size that is often told for the whole network is 20.84 million; its classifier has 1.025 of them.
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(20.84e6 - 1.025e6, rel=1e-3)


def test_features_and_their_strides():
    net = DarkNet19(width=0.05).eval()
    maps = net(torch.rand(1, 3, 64, 96))
    shapes = net.output_shape()
    assert maps["conv13"].shape == (1, shapes["conv13"].channels, 4, 6) and shapes["conv13"].stride == 16
    assert maps["conv18"].shape == (1, shapes["conv18"].channels, 2, 3) and shapes["conv18"].stride == 32
    torch.testing.assert_close(net.last_stage(maps["conv13"]), maps["conv18"])


def test_config_builds_it():
    cfg = read_cfg("", ["MODEL.BACKBONE.NAME", "build_darknet19_backbone", "MODEL.DARKNET.WIDTH", "0.125",
                        "MODEL.DARKNET.NORM", ""])  # fmt: skip
    net = build_backbone(cfg)
    assert net.conv1.out_channels == 4 and net.conv1.bias is not None and net.conv18.out_channels == 128
    with pytest.raises(ValueError, match="WIDTH is 0"):
        DarkNet19(width=0)
