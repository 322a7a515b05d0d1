"""Staged backbones: later stages on chosen pixels against the whole map times the mask, and what they cost."""

import pytest
import torch
from masked_reference import masked_stage
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dyn_d2.config import add_dyn_d2_config
from dyn_d2.gating import recording
from dyn_d2.methods.layer_cascade.backbone import STAGES
from dyn_d2.methods.layer_cascade.mobile import ConvNormAct, LayerCascadeMobile
from dyn_d2.methods.layer_cascade.pixels import restrict
from dyn_d2.ops import region_conv, region_depthwise
from dyn_d2.ops.region_conv import Region, to_map
from dyn_d2.utils.errors import UserError

from detectron2.config import get_cfg
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import build_backbone


def as_map(x) -> torch.Tensor:
    """(N, C, H, W), 0 where nothing is known."""
    return x if isinstance(x, torch.Tensor) else to_map(x.rows, x.region)


KINDS = {
    "resnet18": ("build_cascade_resnet_backbone", ["MODEL.RESNETS.DEPTH", 18]),
    "resnet50": ("build_cascade_resnet_backbone", ["MODEL.RESNETS.DEPTH", 50]),
    "lite0": ("build_cascade_mobile_backbone", ["MODEL.TIMM.NAME", "tf_efficientnet_lite0"]),
    "inception": ("build_cascade_inception_resnet_backbone", ["MODEL.INCEPTION_RESNET.BLOCKS", [1, 1, 2]]),
}
COMMON = [
    "MODEL.RESNETS.NORM",
    "BN",
    "MODEL.INCEPTION_RESNET.NORM",
    "BN",
    "MODEL.TIMM.NORM",
    "BN",
    "MODEL.BACKBONE.FREEZE_AT",
    0,
]
SIZE = (2, 5, 6)


def _backbone(kind: str, *opts):
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    name, own = KINDS[kind]
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", name, *COMMON, *own, *opts])
    net = build_backbone(cfg, ShapeSpec(channels=3))
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):  # a norm whose shift makes a zero something else
            nn.init.normal_(layer.running_mean, 0.0, 0.1)
            nn.init.normal_(layer.bias, 0.1, 0.1)
    return net.eval()


@pytest.fixture(scope="module", params=list(KINDS))
def net(request):
    torch.manual_seed(0)
    return _backbone(request.param)


def _masks():
    first = torch.rand(SIZE) < torch.tensor([0.3, 0.8])[:, None, None]
    return first, first & (torch.rand(SIZE) < 0.5)


def _close(one, other):
    scale = other.abs().max().clamp(min=1)
    torch.testing.assert_close(one / scale, other / scale, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("grad", [False, True], ids=["folded", "plain"])
def test_stages_are_the_masked_ones(net, grad):
    """With gradients the code of training runs, without them that of evaluation; twice, as weights are packed then."""
    masks = _masks()
    images = torch.randn(SIZE[0], 3, SIZE[1] * 8, SIZE[2] * 8)
    for _ in range(1 if grad else 2):
        with torch.set_grad_enabled(grad):
            features = net(images)
            x, expected = features["stage1"], features["stage1"].clone()
            for number, mask in enumerate(masks, 1):
                region = Region.of(mask)
                x = features.resume(STAGES[number], restrict(x, region))
                expected = masked_stage(net.later_parts(number), expected, mask[:, None].float())
                _close(as_map(x), expected)


@torch.no_grad()
def test_all_pixels_give_what_the_whole_map_gives(net):
    features = net(torch.randn(SIZE[0], 3, SIZE[1] * 8, SIZE[2] * 8))
    first = features["stage1"].clone()
    region = Region.of(torch.ones(SIZE, dtype=torch.bool))
    two = features.resume("stage2", restrict(first, region))
    three = features.resume("stage3", restrict(two, region))
    _close(as_map(two), features["stage2"])
    _close(as_map(three), features["stage3"])
    assert torch.equal(features["stage1"], first)
    shapes = {name: (tuple(features[name].shape[1:2])[0], 8) for name in STAGES}
    assert shapes == {name: (shape.channels, shape.stride) for name, shape in net.output_shape().items()}


@torch.no_grad()
def test_counted_is_what_runs(net, monkeypatch):
    if isinstance(net, LayerCascadeMobile) and not region_depthwise.load():
        pytest.skip("torch does not count what its code for depthwise convolutions does")
    monkeypatch.setattr(region_conv, "_available", lambda: False)  # oneDNN multiplies some rows more, to round them up
    monkeypatch.setattr(region_conv, "_MULTIPLE", 1)
    images = torch.randn(SIZE[0], 3, SIZE[1] * 8, SIZE[2] * 8)
    masks = _masks()
    for layer in net.modules():  # forget what was packed
        if isinstance(layer, nn.BatchNorm2d):
            layer.bias.add_(0.0)
    with FlopCounterMode(display=False) as counter, recording() as trace:
        features = net(images)
        x = features["stage1"]
        for number, mask in enumerate(masks, 1):
            x = features.resume(STAGES[number], restrict(x, Region.of(mask)))
    assert 2 * float(trace.executed().sum()) == pytest.approx(counter.get_total_flops(), rel=1e-6)
    assert [cost.name for cost in trace.costs] == list(STAGES)
    shares = [cost.executed / cost.dense for cost in trace.costs[1:]]
    for share, mask in zip(shares, masks, strict=True):
        torch.testing.assert_close(share, mask.float().mean((1, 2)))
    with recording() as dense:
        net(images)["stage3"]
    assert dense.dense() == trace.dense() and dense.executed().tolist() == [trace.dense()] * SIZE[0]


@torch.no_grad()
def test_no_pixel_left(net):
    images = torch.randn(1, 3, 32, 32)
    features = net(images)
    with recording() as trace:
        x = features.resume("stage2", restrict(features["stage1"], Region.of(torch.zeros(1, 4, 4, dtype=torch.bool))))
        x = features.resume("stage3", x)
    assert x.rows.shape == (0, net.channels[2]) and float(trace.executed()) == 0 < trace.dense()


@pytest.mark.parametrize("pixels", [0, 1, 7])
def test_trains_on_few_pixels(pixels):
    net = _backbone("resnet18").train()
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask.view(-1)[:pixels] = True
    features = net(torch.randn(1, 3, 32, 32))
    x = features.resume("stage3", features.resume("stage2", restrict(features["stage1"], Region.of(mask))))
    x.rows.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())
    assert bool(net.res5[0].conv2.weight.grad.any()) == (pixels > 0)


@pytest.mark.parametrize("depth", [18, 50])
def test_weights_of_plain_resnets_fit_and_mean_the_same(depth):
    """Without strides it is the plain network on a map that is read at every place: it agrees where that one looks."""
    net = _backbone(f"resnet{depth}")
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0])
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", ["res5"]])
    cfg.merge_from_list(["MODEL.RESNETS.RES2_OUT_CHANNELS", 64 if depth == 18 else 256])
    plain = build_backbone(cfg, ShapeSpec(channels=3)).eval()
    plain.load_state_dict(net.state_dict())
    images = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        _close(net(images)["stage3"][:, :, ::4, ::4], plain(images)["res5"])


@pytest.mark.parametrize("name, first", [("tf_efficientnet_lite0", 1), ("mobilenetv2_100", 0)])
def test_mobile_networks_are_those_of_timm(name, first):
    """Without strides they are the plain networks, read at every place; TensorFlow's kernels lie a pixel further."""
    timm = pytest.importorskip("timm")
    net = _backbone("lite0", "MODEL.TIMM.NAME", name, "MODEL.PIXEL_STD", [1.0, 1.0, 1.0])
    plain = timm.create_model(name, features_only=True, out_indices=(2, 3, 4)).eval()
    layers = [layer for layer in net.modules() if isinstance(layer, Conv2d)]
    convs = [layer for layer in plain.modules() if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in plain.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(layers) == len(convs) == len(norms)
    with torch.no_grad():
        for layer, conv, norm in zip(layers, convs, norms, strict=True):
            conv.weight.copy_(layer.weight)
            for key in ("weight", "bias", "running_mean", "running_var"):
                getattr(norm, key).copy_(getattr(layer.norm, key))
        images = torch.randn(1, 3, 64, 96)
        net.pixels = nn.Identity()
        found = net(images)
        for stage, expected, step in zip(STAGES, plain(images), (1, 2, 4), strict=True):
            start = (step - 1) * first
            _close(found[stage][:, :, start::step, start::step], expected)
            assert found[stage].shape[-2:] == (8, 12)


def test_mobile_networks_that_need_whole_maps_are_refused():
    pytest.importorskip("timm")
    for name, why in (("semnasnet_050", "squeeze and excitation"), ("resnet18", "no chain of inverted residuals")):
        with pytest.raises(UserError, match=f"{name}.*{why}.*EfficientNet-Lite"):
            _backbone("lite0", "MODEL.TIMM.NAME", name)
    layer, norm = nn.Conv2d(4, 4, 2), nn.BatchNorm2d(4)
    norm.act = nn.ReLU()
    with pytest.raises(UserError, match="2 x 2 has no middle"):
        ConvNormAct(layer, norm, "BN")
    norm.act = nn.Hardswish()
    with pytest.raises(UserError, match="activation Hardswish"):
        ConvNormAct(nn.Conv2d(4, 4, 3), norm, "BN")


def test_a_frozen_mobile_network_has_constants_up_to_its_stride():
    net = _backbone("lite0", "MODEL.BACKBONE.FREEZE_AT", 3).train()
    assert not any(p.requires_grad for p in net.first.parameters())
    assert all(p.requires_grad for p in net.second.parameters())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in net.first.modules())


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="MODEL.RESNETS.NORM"):
        _backbone("resnet18", "MODEL.RESNETS.NORM", "GN")
    with pytest.raises(ValueError, match="MODEL.RESNETS.DEPTH"):
        _backbone("resnet18", "MODEL.RESNETS.DEPTH", 20)
    with pytest.raises(ValueError, match="MODEL.INCEPTION_RESNET.BLOCKS"):
        _backbone("inception", "MODEL.INCEPTION_RESNET.BLOCKS", [1, 2])
    with pytest.raises(KeyError, match="stage1, stage2, stage3"):
        _backbone("resnet18")(torch.randn(1, 3, 16, 16))["res5"]


def test_irnet_has_the_size_that_the_paper_names():
    net = _backbone("inception", "MODEL.INCEPTION_RESNET.BLOCKS", [5, 10, 5])
    assert 28e6 < sum(p.numel() for p in net.parameters()) < 36e6
