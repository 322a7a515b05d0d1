"""Backbones of timm: their features are timm's own, and Detectron2's keys do with them what they do with ResNets."""

import copy
import logging
import re

import pytest
import torch
from timm_nets import FAMILIES, PYRAMID, build_timm, saved_weights, timm_cfg, timm_features
from tiny_tasks import OUTPUTS, batch
from torch import nn

from dyn_d2.modeling.backbone.timm_norms import freeze_norms

from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

timm = pytest.importorskip("timm")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_features_are_those_of_timm_on_the_same_image(name, order, tmp_path):
    """The whole way: an image in INPUT.FORMAT, normalised and padded by the meta-architecture."""
    weights = saved_weights(name, tmp_path)
    model = build_model(timm_cfg(name, INPUT__FORMAT=order, MODEL__TIMM__WEIGHTS=weights)).eval()
    own = timm_features(name, weights)
    rgb = torch.randint(0, 256, (3, 64, 96)).float()
    mean, std = (torch.tensor(own.pretrained_cfg[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    images = model.preprocess_image([{"image": rgb.flip(0) if order == "BGR" else rgb}])
    with torch.no_grad():
        expected = own((rgb / 255 - mean)[None] / std)
        found = model.backbone(images.tensor)
    assert list(found) == FAMILIES[name]
    for feature, right in zip(found.values(), expected[-len(found) :], strict=True):
        scale = right.abs().max()
        torch.testing.assert_close(feature / scale, right / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, r"its own mean \[127.5, 127.5, 127.5\] and standard deviation \[127.5, 127.5, 127.5\]"),
        (
            {"MODEL__PIXEL_MEAN": [1.0, 2.0, 3.0], "MODEL__PIXEL_STD": [4.0, 5.0, 6.0]},
            r"MODEL.PIXEL_MEAN \[1, 2, 3\] and PIXEL_STD \[4, 5, 6\] in INPUT.FORMAT BGR, as the config says",
        ),
    ],
)
def test_the_log_says_how_images_are_normalised(keys, said, caplog):
    caplog.set_level(logging.INFO)
    backbone = build_timm("tf_efficientnet_lite0", **keys)
    assert len([record for record in caplog.records if "normalised" in record.message]) == 1
    assert re.search(said, caplog.text)
    image = torch.tensor([10.0, 20.0, 30.0]).reshape(1, 3, 1, 1)  # as blue, green, red of 255
    default = torch.tensor([103.53, 116.28, 123.675]).reshape(1, 3, 1, 1)
    given = keys.get("MODEL__PIXEL_MEAN")
    seen = backbone.pixels(image if given else image - default).flatten()
    right = [30.0, 20, 10] if given else [(value - 127.5) / 127.5 for value in (30, 20, 10)]
    torch.testing.assert_close(seen, torch.tensor(right), rtol=1e-5, atol=1e-5)


def test_images_without_colours_are_refused():
    with pytest.raises(ValueError, match="INPUT.FORMAT is 'YUV-BT.601'.*RGB or BGR"):
        build_timm("test_resnet", INPUT__FORMAT="YUV-BT.601")


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_and_strides(name):
    backbone = build_timm(name).eval()
    shapes = backbone.output_shape()
    assert [f"res{shape.stride.bit_length() - 1}" for shape in shapes.values()] == list(shapes) == FAMILIES[name]
    assert backbone.size_divisibility == list(shapes.values())[-1].stride
    with torch.no_grad():
        for feature, value in backbone(torch.randn(2, 3, 96, 64)).items():
            stride = shapes[feature].stride
            assert value.shape == (2, shapes[feature].channels, 96 // stride, 64 // stride)


def test_what_lies_behind_the_last_feature_is_left_out():
    whole, part = (build_timm("tf_efficientnet_lite0", MODEL__RESNETS__OUT_FEATURES=[f]) for f in ("res5", "res3"))
    assert list(part.output_shape()) == ["res3"] and part.size_divisibility == 8
    names = part.state_dict().keys()
    assert names < whole.state_dict().keys() and not any("blocks.3" in name or "head" in name for name in names)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("freeze_at", [0, 1, 2])
def test_freezing(name, freeze_at):
    """What is frozen gets no gradient and does not change in training; all else learns."""
    backbone = build_timm(name, MODEL__BACKBONE__FREEZE_AT=freeze_at).train()
    before = copy.deepcopy(backbone.state_dict())
    sum(value.square().mean() for value in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    frozen = [key for key, parameter in backbone.named_parameters() if not parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in backbone.parameters() if parameter.requires_grad)
    assert bool(frozen) == (freeze_at > 0)
    moving = {key for key, module in backbone.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for key, value in backbone.state_dict().items():
        still = key.rpartition(".")[0] not in moving or "running" not in key
        assert torch.equal(value, before[key]) == still or "num_batches" in key
    stages = {"tf_efficientnet_lite0": ("conv_stem", "blocks.1"), "test_convnext": ("stem", "stages.0")}
    if freeze_at and name in stages:
        stem, stage = stages[name]
        assert any(f"model.{stem}" in key for key in frozen)
        assert any(f"model.{stage}." in key for key in frozen) == (freeze_at == 2)


def test_all_of_a_small_network_can_be_frozen():
    backbone = build_timm("test_resnet", MODEL__BACKBONE__FREEZE_AT=5)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_frozen_norms_are_constants_with_the_same_output(tmp_path):
    weights = saved_weights("mobilenetv3_small_050", tmp_path)
    learning, frozen = (
        build_timm("mobilenetv3_small_050", MODEL__TIMM__NORM=norm, MODEL__TIMM__WEIGHTS=weights)
        for norm in ("BN", "FrozenBN")
    )
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in frozen.modules())
    assert learning.state_dict().keys() == frozen.state_dict().keys()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        right = learning.eval()(x)
        for key, value in frozen.train()(x).items():
            torch.testing.assert_close(value, right[key], rtol=1e-5, atol=1e-5)
    for key, value in frozen(x).items():  # where a gradient is wanted, the layer is computed in another way
        torch.testing.assert_close(value, right[key], rtol=1e-4, atol=1e-4)
    frozen.load_state_dict(learning.state_dict())


def test_norms_of_one_dimension_are_frozen_too():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm2d(4, affine=False))
    freeze_norms(model)
    model.train()
    assert not model[1].training and not any(parameter.requires_grad for parameter in model[1].parameters())
    assert isinstance(model[2], FrozenBatchNorm2d)


def test_synchronised_norms():
    backbone = build_timm("test_resnet", MODEL__TIMM__NORM="SyncBN")
    assert any(isinstance(layer, nn.SyncBatchNorm) for layer in backbone.modules())


@pytest.mark.parametrize(
    ("task", "backbone", "keys"),
    [
        ("rcnn_fpn", "build_timm_fpn_backbone", {}),
        ("retinanet", "build_timm_retinanet_fpn_backbone", {}),
        (
            "rcnn_fpn",
            "build_timm_backbone",
            {
                "MODEL__RESNETS__OUT_FEATURES": ["res4"],
                "MODEL__ANCHOR_GENERATOR__SIZES": [[8, 16, 32]],
                "MODEL__RPN__IN_FEATURES": ["res4"],
                "MODEL__ROI_HEADS__IN_FEATURES": ["res4"],
            },
        ),
    ],
)
def test_detectors_train_and_predict(task, backbone, keys):
    keys = {"MODEL__RESNETS__OUT_FEATURES": PYRAMID, **keys}
    model = build_model(timm_cfg("tf_efficientnet_lite0", backbone, task, MODEL__BACKBONE__FREEZE_AT=2, **keys))
    with EventStorage():
        losses = model(batch())
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    with torch.no_grad():
        assert OUTPUTS.get(task, "instances") in model.eval()(batch())[0]


def test_the_pooled_level_follows_the_coarsest_feature():
    features = ["res2", "res3", "res4"]
    keys = {"MODEL__RESNETS__OUT_FEATURES": features, "MODEL__FPN__IN_FEATURES": features}
    backbone = build_timm("test_convnext", "build_timm_fpn_backbone", **keys)
    assert list(backbone(torch.randn(1, 3, 64, 64))) == ["p2", "p3", "p4", "p5"]


def test_a_model_of_one_size_says_so():
    backbone = build_timm("levit_128s", MODEL__RESNETS__OUT_FEATURES=["res4"])
    assert backbone.padding_constraints == {"square_size": 224}
    assert backbone(torch.randn(1, 3, 224, 224))["res4"].shape[-2:] == (14, 14)
    with pytest.raises(ValueError, match="levit_128s takes images of 224 x 224 only, not of 64 x 96"):
        backbone(torch.randn(1, 3, 64, 96))


@pytest.mark.parametrize(
    ("name", "backbone", "keys", "message"),
    [
        ("", "build_timm_backbone", {}, "MODEL.TIMM.NAME is empty"),
        ("efficientnet_lit0", "build_timm_backbone", {}, "does not have: did you mean efficientnet_lite0 or"),
        ("zzz", "build_timm_backbone", {}, "timm.list_models"),
        ("resnet18.in22k", "build_timm_backbone", {}, "resnet18 with the weights .*a1_in1k"),
        ("test_resnet", "build_timm_backbone", {"MODEL__TIMM__NORM": "GN"}, "MODEL.TIMM.NORM is 'GN'"),
        (
            "test_resnet",
            "build_timm_backbone",
            {"MODEL__RESNETS__OUT_FEATURES": ["res6"]},
            "res1, res2, res3, res4, re",
        ),
        ("test_vit", "build_timm_fpn_backbone", {"MODEL__RESNETS__OUT_FEATURES": PYRAMID}, "test_vit has no pyramid"),
        ("test_vit", "build_timm_fpn_backbone", {"MODEL__FPN__IN_FEATURES": PYRAMID}, "test_vit has no pyramid"),
        ("test_resnet", "build_timm_fpn_backbone", {"MODEL__FPN__IN_FEATURES": ["p3"]}, "MODEL.FPN.IN_FEATURES asks"),
    ],
)
def test_wrong_keys(name, backbone, keys, message):
    with pytest.raises(ValueError, match=message):
        build_timm(name, backbone, **keys)
