"""Backbones of output stride 8: VGG16 and ResNets with a dilated res4."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from dyn_d2.checkpoint.torchvision_names import from_torchvision
from dyn_d2.config.read import read_cfg
from dyn_d2.gating.backbones.dilated_vgg import DilatedVGG

from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

RESNET = ["MODEL.BACKBONE.NAME", "build_gated_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", "['res3', 'res5']"]


def test_vgg_takes_torchvisions_weights_and_dilates_the_last_stage():
    with torch.device("meta"):
        published = torchvision.models.vgg16().state_dict()
    vgg = DilatedVGG(out_features=("stage3", "stage5"), freeze_at=2)
    own = vgg.state_dict()
    assert own.keys() == {name for name in published if name.startswith("features.")}
    assert all(own[name].shape == published[name].shape for name in own)
    assert set(from_torchvision(published)) == set(published)
    x = torch.rand(1, 3, 36, 41)
    features = vgg(x)
    for layer in vgg.features:  # by hand
        dilation = layer.dilation[0] if isinstance(layer, nn.Conv2d) else 0
        if dilation:
            x = F.relu(F.conv2d(x, layer.weight, layer.bias, padding=dilation, dilation=dilation))
        elif isinstance(layer, nn.MaxPool2d):
            x = F.max_pool2d(x, 3, layer.stride, padding=1)
    assert torch.allclose(features["stage5"], x, atol=1e-6) and x.shape == (1, 512, 5, 6)
    assert [m.dilation[0] for m in vgg.features if isinstance(m, nn.Conv2d)] == [1] * 10 + [2] * 3
    assert {name: shape.stride for name, shape in vgg.output_shape().items()} == {"stage3": 4, "stage5": 8}
    frozen = [name for name, p in vgg.named_parameters() if not p.requires_grad]
    assert len(frozen) == 8 and features["stage3"].shape == (1, 256, 9, 11)


def test_vgg_from_config_and_a_wrong_feature():
    opts = ["MODEL.BACKBONE.NAME", "build_dilated_vgg_backbone", "MODEL.RESNETS.OUT_FEATURES", "['stage5']"]
    backbone = build_backbone(read_cfg("", opts), ShapeSpec(channels=3))
    assert backbone.output_shape()["stage5"].channels == 512
    with pytest.raises(ValueError, match="not res5"):
        DilatedVGG(out_features=("res5",))


def test_resnet_of_stride_8():
    opts = [*RESNET, "MODEL.RESNETS.RES4_DILATION", "2", "MODEL.RESNETS.RES5_DILATION", "4"]
    backbone = build_backbone(read_cfg("", opts), ShapeSpec(channels=3))
    assert {name: shape.stride for name, shape in backbone.output_shape().items()} == {"res3": 8, "res5": 8}
    assert {block.conv2.dilation for block in backbone.res4} == {(2, 2)}
    assert {block.conv2.dilation for block in backbone.res5} == {(4, 4)}
    with torch.no_grad():
        features = backbone.eval()(torch.rand(1, 3, 33, 65))
    assert features["res5"].shape == (1, 2048, 5, 9)
    with pytest.raises(ValueError, match="RES4_DILATION is 2 and RES5_DILATION is 1"):
        build_backbone(read_cfg("", [*RESNET, "MODEL.RESNETS.RES4_DILATION", "2"]), ShapeSpec(channels=3))
