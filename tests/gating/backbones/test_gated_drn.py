"""Gated DRN-A."""

import pytest
import torch

from dyn_d2.config import add_dyn_d2_config
from dyn_d2.gating import recording

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_backbone, build_resnet_backbone


def drn_cfg(**keys):
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_gated_drn_backbone", 0
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.OUT_FEATURES = "BN", ["res2", "res5"]
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.GATED.UNIT = "channel"
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def test_stride_dilation_and_names_are_those_of_drn_a_50():
    cfg = drn_cfg()
    net, plain = build_backbone(cfg, ShapeSpec(channels=3)), build_resnet_backbone(cfg, ShapeSpec(channels=3))
    assert {name: (shape.channels, shape.stride) for name, shape in net.output_shape().items()} == {
        "res2": (256, 4),
        "res5": (2048, 8),
    }
    assert [block.conv2.dilation[0] for block in (*net.res4, *net.res5)] == [1, 2, 2, 2, 2, 2, 1, 4, 4]
    assert all(block.stride == 1 for block in (*net.res4, *net.res5))
    net.load_state_dict(plain.state_dict())
    with torch.no_grad(), recording() as trace:
        features = net.eval()(torch.randn(1, 3, 32, 48))
    assert features["res5"].shape == (1, 2048, 4, 6) and features["res2"].shape == (1, 256, 8, 12)
    assert trace.executed()[0] == pytest.approx(trace.dense())
    assert len(trace.steps) == 32  # two gates in each of 16 blocks


@pytest.mark.parametrize("unit", ["block", "group"])
def test_other_units(unit):
    net = build_backbone(drn_cfg(MODEL__GATED__UNIT=unit), ShapeSpec(channels=3)).eval()
    with torch.no_grad():
        assert net(torch.randn(1, 3, 32, 32))["res5"].shape == (1, 2048, 4, 4)


def test_too_shallow():
    with pytest.raises(ValueError, match="MODEL.RESNETS.DEPTH is 18: a DRN-A has 50, 101, 152 layers"):
        build_backbone(drn_cfg(MODEL__RESNETS__DEPTH=18), ShapeSpec(channels=3))
