"""Gated ResNets for 32x32 images."""

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from gated_nets import build, force, gated_cfg, random_choices
from torch.utils.flop_counter import FlopCounterMode

from dyn_d2.gating import recording


def _cfg(depth: int, **keys):
    return gated_cfg("build_gated_cifar_resnet_backbone", MODEL__RESNETS__DEPTH=depth,
                     MODEL__RESNETS__OUT_FEATURES=["res2", "res3", "res4"], **keys)  # fmt: skip


# Decisions: facts of SkipNet. Multiply-adds: 3x3 convolutions and two projections, by hand.
@pytest.mark.parametrize("depth, decisions", [(8, 2), (38, 17), (74, 35), (110, 53), (152, 74)])
def test_decisions_shapes_and_cost(depth, decisions):
    n = (depth - 2) // 6
    backbone = build(_cfg(depth)).eval()
    assert len(backbone.policy.units) == decisions
    with torch.no_grad(), recording() as trace:
        features = backbone(torch.zeros(1, 3, 32, 32))
    assert {name: tuple(f.shape[1:]) for name, f in features.items()} == {
        "res2": (16, 32, 32), "res3": (32, 16, 16), "res4": (64, 8, 8)
    }  # fmt: skip
    full = 9 * 16 * 16 * 1024  # a 3x3 convolution inside any stage
    projections = 16 * 32 * 256 + 32 * 64 * 64
    assert trace.dense() == 9 * 3 * 16 * 1024 + (6 * n - 1) * full + projections  # two have half the input


@pytest.mark.parametrize("depth", [0, 7, 40, 51])
def test_other_depths_are_refused(depth):
    with pytest.raises(ValueError, match="6n \\+ 2"):
        build(_cfg(depth))


def test_fvcore_counts_the_same():
    backbone = build(_cfg(14)).eval()
    x = torch.randn(1, 3, 32, 32)
    counted = FlopCountAnalysis(backbone, x).unsupported_ops_warnings(False).by_operator()
    with torch.no_grad(), recording() as trace:
        backbone(x)
    assert trace.dense() == counted["conv"] + counted["linear"]


@pytest.mark.parametrize("unit", ["block", "group", "channel"])
def test_runs_what_it_counts(unit):
    backbone = build(_cfg(14, MODEL__GATED__UNIT=unit)).eval()
    force(backbone, random_choices(backbone, 3, 0.6))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), recording() as trace, counter:
        backbone(torch.randn(3, 3, 32, 32))
    assert (trace.executed() < trace.dense()).any()
    if unit != "channel":  # kernels for channels are not torch's own
        assert float(trace.executed().sum()) == pytest.approx(counter.get_total_flops() / 2, rel=1e-6)


@pytest.mark.parametrize("policy", ["skipnet_rnn", "skipnet_ffgate1", "random_skip", "convnet_aig"])
def test_trains_a_step(policy):
    backbone = build(_cfg(14, MODEL__POLICY__NAME=policy))
    optimizer = torch.optim.SGD(backbone.parameters(), 0.1)
    with recording() as trace:
        features = backbone(torch.randn(4, 3, 32, 32))
    features["res4"].square().mean().backward()
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in backbone.parameters()) and len(trace.steps) == 5
