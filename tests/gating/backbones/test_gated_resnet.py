"""The gated ResNet against Detectron2's plain one."""

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from gated_nets import build, force, gated_cfg, random_choices, settle
from torch.utils.flop_counter import FlopCounterMode

from dyn_d2.gating import recording
from dyn_d2.gating.decisions import hard_threshold

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone

DECISIONS = {18: 7, 34: 15, 50: 15, 101: 32, 152: 49}


def _deep(**keys):
    return gated_cfg(MODEL__RESNETS__DEPTH=50, MODEL__RESNETS__RES2_OUT_CHANNELS=64,
                     MODEL__RESNETS__STEM_OUT_CHANNELS=16, MODEL__RESNETS__WIDTH_PER_GROUP=16, **keys)  # fmt: skip


def _plain(cfg, like):
    plain = build_resnet_backbone(cfg, ShapeSpec(channels=3)).train(like.training)
    plain.load_state_dict(like.state_dict())
    return plain


def _masked(plain, x, choices):
    """Every block for every image: G F + (1 - G) S, the first block without a gate."""
    features, gates = {}, iter(choices)
    x = plain.stem(x)
    for number, stage in enumerate(plain.stages):
        for i, block in enumerate(stage):
            full = block(x)
            if number or i:
                gate = next(gates).float().reshape(-1, 1, 1, 1)
                full = gate * full + (1 - gate) * (x if block.shortcut is None else block.shortcut(x))
            x = full
        features[f"res{number + 2}"] = x
    return features


@pytest.mark.parametrize("depth", DECISIONS)
def test_has_the_parameters_of_the_plain_network_and_skipnets_decisions(depth):
    with torch.device("meta"):
        out_channels = 256 if depth >= 50 else 64
        cfg = gated_cfg(MODEL__RESNETS__DEPTH=depth, MODEL__RESNETS__RES2_OUT_CHANNELS=out_channels)
        gated, plain = build(cfg), build_resnet_backbone(cfg, ShapeSpec(channels=3))
    shapes = [{name: value.shape for name, value in net.state_dict().items()} for net in (gated, plain)]
    assert shapes[0] == shapes[1] and gated.output_shape() == plain.output_shape()
    assert len(gated.policy.units) == DECISIONS[depth]
    assert gated.policy.units[0].name == "res2.1" and gated.policy.units[0].stage == 0


@pytest.mark.parametrize("make", [gated_cfg, _deep], ids=["basic", "bottleneck"])
@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_evaluation_equals_dense_masked_execution(make, rate):
    cfg = make()
    gated = settle(build(cfg)).eval()
    plain, x = _plain(cfg, gated), torch.randn(3, 3, 64, 64)
    choices = random_choices(gated, 3, rate)
    force(gated, choices)
    with torch.no_grad():
        features, expected = gated(x), _masked(plain, x, choices)
    for name, feature in features.items():
        torch.testing.assert_close(feature / expected[name].abs().max(), expected[name] / expected[name].abs().max(),
                                   atol=1e-5, rtol=0)  # fmt: skip


def test_returned_features_are_not_overwritten_by_later_blocks():
    cfg = gated_cfg(MODEL__RESNETS__OUT_FEATURES=["stem", "res2", "res3", "res4", "res5"])
    gated = settle(build(cfg)).eval()
    x = torch.randn(4, 3, 64, 64)
    force(gated, [torch.tensor([1, 0, 1, 0])] * 7)
    kept = x.clone()
    with torch.no_grad():
        features = gated(x)
    with torch.enable_grad():  # nothing is overwritten where gradients are wanted
        expected = gated(x)
    assert torch.equal(x, kept)
    for name, feature in features.items():
        torch.testing.assert_close(feature, expected[name].detach(), atol=1e-4, rtol=1e-4)


def test_convolutions_run_for_chosen_images_only_and_the_projection_once():
    gated = settle(build(gated_cfg())).eval()
    choices = random_choices(gated, 5)
    force(gated, choices)
    seen = {}

    def count(name):
        return lambda layer, inputs, output: seen.__setitem__(name, seen.get(name, 0) + len(inputs[0]))

    for name, layer in gated.named_modules():
        if name.endswith(("conv1", "conv2", "shortcut")):
            layer.register_forward_hook(count(name))
    gated(torch.randn(5, 3, 64, 64))  # with gradients: without, layers are not called one by one
    for unit, choice in zip(gated.policy.units, choices, strict=True):
        assert [seen.get(f"{unit.name}.{conv}", 0) for conv in ("conv1", "conv2")] == [int(choice.sum())] * 2
    assert [seen[f"res{i}.0.shortcut"] for i in (3, 4, 5)] == [5, 5, 5]


@pytest.mark.parametrize("norm", ["BN", "GN"])  # folded into convolutions, and not
@pytest.mark.parametrize("images", [1, 5])
def test_evaluation_computes_what_the_trace_says_and_no_more(images, norm):
    gated = settle(build(gated_cfg(MODEL__RESNETS__NORM=norm))).eval()
    for _ in range(3):  # the first time by other operators than later
        force(gated, random_choices(gated, images))
        with torch.no_grad(), recording() as trace, FlopCounterMode(display=False) as counter:
            gated(torch.randn(images, 3, 64, 64))
        assert counter.get_total_flops() == pytest.approx(2 * float(trace.executed().sum()), rel=1e-6)


@pytest.mark.parametrize("make", [gated_cfg, _deep], ids=["basic", "bottleneck"])
def test_all_open_costs_what_fvcore_counts_for_the_plain_network(make):
    cfg = make()
    gated = build(cfg).eval()
    x = torch.randn(1, 3, 64, 96)
    counted = FlopCountAnalysis(_plain(cfg, gated), x).unsupported_ops_warnings(False).by_operator()
    with torch.no_grad(), recording() as trace:
        gated(x)
    expected = counted["conv"] + counted["linear"]
    assert trace.dense() == expected and float(trace.executed()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("policy", ["skipnet_rnn", "skipnet_ffgate1", "skipnet_ffgate2", "convnet_aig"])
def test_gates_are_what_executed_has_more_than_dense(policy):
    gated = build(gated_cfg(MODEL__POLICY__NAME=policy)).eval()
    with torch.no_grad(), recording() as trace:
        gated(torch.randn(2, 3, 64, 64))
    closed = sum((1 - step.decision.open.float()) * step.unit_cost for step in trace.steps)
    assert (trace.gates() > 0).all()
    torch.testing.assert_close(trace.executed(), trace.dense() + trace.gates() - closed)


@pytest.mark.parametrize("make", [gated_cfg, _deep], ids=["basic", "bottleneck"])
def test_executed_is_what_torch_counts_while_it_runs(make):
    gated = build(make()).eval()
    force(gated, random_choices(gated, 4))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), recording() as trace, counter:
        gated(torch.randn(4, 3, 64, 64))
    assert float(trace.executed().sum()) == pytest.approx(counter.get_total_flops() / 2, rel=1e-6)
    assert (trace.executed() < trace.dense()).any()


def test_a_training_step_reaches_gates_and_open_blocks_only():
    gated = build(gated_cfg())
    probs = [torch.full((2,), 0.9 if i % 2 else 0.1, requires_grad=True) for i in range(7)]
    force(gated, [hard_threshold(prob) for prob in probs])
    statistics = gated.res2[1].conv1.norm.running_mean.clone()
    sum(feature.mean() for feature in gated(torch.randn(2, 3, 64, 64)).values()).backward()
    assert all((prob.grad != 0).all() for prob in probs)
    assert gated.res2[1].conv1.weight.grad is None and gated.res3[0].conv1.weight.grad is not None
    assert torch.equal(statistics, gated.res2[1].conv1.norm.running_mean)
    assert gated.skips_parameters


@pytest.mark.parametrize("training", [True, False])
def test_empty_batch(training):
    gated = build(gated_cfg(MODEL__POLICY__NAME="skipnet_rnn")).train(training)
    with recording() as trace:
        features = gated(torch.zeros(0, 3, 64, 64))
    assert {name: tuple(f.shape) for name, f in features.items()} == {
        "res2": (0, 64, 16, 16), "res3": (0, 128, 8, 8), "res4": (0, 256, 4, 4), "res5": (0, 512, 2, 2)
    }  # fmt: skip
    assert trace.executed().shape == (0,)
    sum(feature.sum() for feature in features.values()).backward()


def test_one_image_of_stride_size_trains():
    gated = build(gated_cfg())
    force(gated, [torch.ones(1)] * 7)
    features = gated(torch.randn(1, 3, 64, 64))
    assert features["res5"].shape[-2:] == (2, 2)
    force(gated, [torch.ones(1)] * 7)
    assert torch.isfinite(gated(torch.randn(1, 3, 32, 32))["res5"]).all()


def test_freezing_stops_blocks_but_not_gates():
    gated = build(gated_cfg(MODEL__BACKBONE__FREEZE_AT=2, MODEL__POLICY__NAME="skipnet_ffgate2"))
    frozen = {name.split(".")[0] for name, p in gated.named_parameters() if not p.requires_grad}
    assert frozen == {"stem", "res2"}
    assert all(p.requires_grad for p in gated.policy.parameters())


@pytest.mark.parametrize("unit", ["channel", "group"])
@pytest.mark.parametrize("depth", [18, 50])
def test_other_units_run_and_count(unit, depth):
    cfg = gated_cfg(MODEL__RESNETS__DEPTH=depth, MODEL__GATED__UNIT=unit)
    gated = build(cfg).eval()
    force(gated, random_choices(gated, 2, 0.7))
    with torch.no_grad(), recording() as trace:
        features = gated(torch.randn(2, 3, 64, 64))
    assert {kind.kind for kind in gated.policy.units} == {unit}
    assert features["res5"].shape == (2, 512, 2, 2)
    assert (trace.executed() < trace.dense()).all()


@pytest.mark.parametrize("kind", ["A", "B"])
def test_narrow_moe_and_plain_networks_have_the_same_parameters(kind):
    with torch.device("meta"):
        cfg = _deep(MODEL__GATED__UNIT="channel", MODEL__GATED__BOTTLENECK=kind)
        gated, plain = build(cfg), build_resnet_backbone(cfg, ShapeSpec(channels=3))
    shapes = [{name: value.shape for name, value in net.state_dict().items()} for net in (gated, plain)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"MODEL__RESNETS__DEPTH": 20}, "MODEL.RESNETS.DEPTH"),
        ({"MODEL__GATED__UNIT": "layer"}, "MODEL.GATED.UNIT"),
        ({"MODEL__RESNETS__RES5_DILATION": 2}, "MODEL.RESNETS.RES5_DILATION"),
        ({"MODEL__RESNETS__NORM": "SyncBN"}, "synchronised"),
        ({"MODEL__RESNETS__OUT_FEATURES": ["res6"]}, "res6"),
        ({"MODEL__RESNETS__OUT_FEATURES": ["stem"]}, "no block"),
        ({"MODEL__POLICY__NAME": "deepmoe"}, "MODEL.POLICY.NAME"),
        ({"MODEL__RESNETS__DEFORM_ON_PER_STAGE": [True] * 4}, "DEFORM_ON_PER_STAGE"),
        ({"MODEL__RESNETS__DEPTH": 50, "MODEL__GATED__UNIT": "channel", "MODEL__GATED__BOTTLENECK": "C"}, "BOTTLENECK"),
        ({"MODEL__RESNETS__DEPTH": 50, "MODEL__GATED__UNIT": "group", "MODEL__RESNETS__NUM_GROUPS": 32}, "NUM_GROUPS"),
    ],
)
def test_what_cannot_be_is_said(keys, words):
    with pytest.raises(ValueError, match=words), torch.device("meta"):
        build(gated_cfg(**keys))
