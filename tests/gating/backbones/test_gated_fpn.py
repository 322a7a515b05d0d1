"""Feature pyramids on gated backbones."""

import pytest
import torch
from gated_nets import build, force, gated_cfg, random_choices, settle

from dyn_d2.gating import recording

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.fpn import build_resnet_fpn_backbone, build_retinanet_resnet_fpn_backbone

PLAIN = {
    "build_gated_fpn_backbone": (build_resnet_fpn_backbone, ["res2", "res3", "res4", "res5"]),
    "build_gated_retinanet_fpn_backbone": (build_retinanet_resnet_fpn_backbone, ["res3", "res4", "res5"]),
}


@pytest.mark.parametrize("name", PLAIN)
def test_all_open_is_the_plain_pyramid(name):
    build_plain, features = PLAIN[name]
    cfg = gated_cfg(name, MODEL__RESNETS__OUT_FEATURES=features, MODEL__FPN__IN_FEATURES=features)
    gated, plain = settle(build(cfg)).eval(), build_plain(cfg, ShapeSpec(channels=3)).eval()
    assert gated.output_shape() == plain.output_shape() and gated.size_divisibility == plain.size_divisibility
    plain.load_state_dict(gated.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for level, feature in plain(x).items():
            scale = feature.abs().max()  # to which rounding adds up over the layers
            torch.testing.assert_close(gated(x)[level] / scale, feature / scale, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PLAIN)
def test_closed_blocks_leave_all_levels_in_place(name):
    features = PLAIN[name][1]
    cfg = gated_cfg(name, MODEL__RESNETS__OUT_FEATURES=features, MODEL__FPN__IN_FEATURES=features)
    gated = build(cfg)
    force(gated, random_choices(gated, 2, 0.0))
    with recording() as trace:
        levels = gated(torch.randn(2, 3, 64, 64))
    sum(level.sum() for level in levels.values()).backward()
    assert [tuple(level.shape[-2:]) for level in levels.values()][-1] == (1, 1)
    assert gated.skips_parameters and (trace.executed() < trace.dense() / 2).all()


def test_on_a_cifar_network():
    names = ["res2", "res3", "res4"]
    cfg = gated_cfg(
        "build_gated_fpn_backbone",
        MODEL__GATED__BOTTOM_UP="build_gated_cifar_resnet_backbone",
        MODEL__RESNETS__DEPTH=8,
        MODEL__RESNETS__OUT_FEATURES=names,
        MODEL__FPN__IN_FEATURES=names,
    )
    assert list(build(cfg)(torch.randn(1, 3, 32, 32))) == ["p0", "p1", "p2", "p3"]


def test_an_unknown_bottom_up_is_named():
    with pytest.raises(ValueError, match="MODEL.GATED.BOTTOM_UP is 'resnet'.*build_gated_resnet_backbone"):
        build(gated_cfg("build_gated_fpn_backbone", MODEL__GATED__BOTTOM_UP="resnet"))
