"""Images that a policy stops: later blocks do not see them, neither in a batch nor alone."""

import pytest
import torch
from gated_nets import build, gated_cfg, settle
from torch.utils.flop_counter import FlopCounterMode

from dyn_d2.gating import recording
from dyn_d2.methods.pmn.rollout import GREEDY

BACKBONES = {
    "build_gated_cifar_resnet_backbone": {
        "MODEL__RESNETS__DEPTH": 14,
        "MODEL__RESNETS__OUT_FEATURES": ["res3", "res4"],
    },
    "build_gated_resnet_backbone": {"MODEL__RESNETS__OUT_FEATURES": ["res3", "res5"]},
}


def stopping(name: str, stops: list[int], **keys):
    """A gated backbone in which image n stops at module ``stops[n]``, counted from 1."""
    own = {"MODEL__GATED__FIRST_BLOCK": True, "MODEL__POLICY__NAME": "pmn", "MODEL__POLICY__STAGE": "joint",
           "MODEL__POLICY__PMN__WIDTH": 4}  # fmt: skip
    net = settle(build(gated_cfg(name, **own, **BACKBONES[name], **keys)))
    policy, at = net.policy, torch.tensor(stops)

    def probabilities(module, features, state):
        policy.seen.append((module, len(features)))
        return (at[state.rows] > module + 1).float(), torch.zeros(len(features), 1)

    policy.probabilities, policy.seen = probabilities, []
    return net


def blocks(net):
    return [block for stage in net.stage_names for block in getattr(net, stage)]


@pytest.mark.parametrize("name", BACKBONES)
def test_a_block_sees_only_the_images_that_reach_it(name):
    stops = [2, 5, 1, 4, 2]
    net = stopping(name, stops).eval()
    calls = {}
    for number, block in enumerate(blocks(net), 1):
        for conv in (block.conv1, block.conv2, block.shortcut):
            if conv is not None:
                conv.register_forward_hook(
                    lambda m, i, o, number=number: calls.setdefault(number, []).append(len(o)) if len(o) else None
                )
    with recording() as trace:  # with gradients: without, layers are not called one by one
        net(torch.randn(5, 3, 32, 32))
    for number, block in enumerate(blocks(net), 1):
        left = sum(stop >= number for stop in stops)
        convs = 2 + (block.shortcut is not None)
        assert sum(calls.get(number, [])) == convs * left, f"block {number}"
    assert trace.context.state.rollouts[GREEDY].stops.tolist() == stops
    assert net.policy.seen == [(k, sum(stop > k for stop in stops)) for k in range(len(blocks(net)))]


@pytest.mark.parametrize("name", BACKBONES)
def test_what_is_counted_is_what_torch_counts(name):
    stops = [2, 6, 1, 4]
    net = stopping(name, stops).eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), recording() as trace, counter:
        net(torch.randn(4, 3, 32, 32))
    gates = float(trace.gates().sum())  # the probabilities here come from nowhere
    assert float(trace.executed().sum()) - gates == pytest.approx(counter.get_total_flops() / 2, rel=1e-6)
    plain = build(gated_cfg(name, **BACKBONES[name])).eval()
    with torch.no_grad(), recording() as whole:
        plain(torch.randn(1, 3, 32, 32))
    assert trace.dense() == whole.dense()
    order = torch.tensor(stops).argsort()
    assert (trace.executed()[order].diff() > 0).all()


@pytest.mark.parametrize("name", BACKBONES)
def test_an_image_gets_in_a_batch_what_it_gets_alone(name):
    stops, x = [2, 6, 1, 4, 6], torch.randn(5, 3, 32, 32)
    net = stopping(name, stops).eval()
    with torch.no_grad(), recording() as trace:
        features = net(x)
    outputs = {(o.module, int(row)): o.features[i] for o in trace.context.state.outputs for i, row in enumerate(o.rows)}
    assert {(module + 1) for module, _ in outputs} == set(stops)
    last = len(blocks(net))
    for n, stop in enumerate(stops):
        y = net.stem(x[n : n + 1])
        for number, block in enumerate(blocks(net), 1):
            if number <= stop:
                skip = y if block.shortcut is None else block.shortcut(y)
                y = torch.relu(block._branch(y) + skip)
        torch.testing.assert_close(outputs[stop - 1, n], y[0], atol=1e-4, rtol=1e-4)
        if stop < last:
            assert not list(features.values())[-1][n].any()


def test_the_policy_follows_when_images_change_places():
    torch.manual_seed(0)
    own = {"MODEL__POLICY__NAME": "pmn", "MODEL__POLICY__STAGE": "joint", "MODEL__POLICY__PMN__WIDTH": 8,
           "MODEL__GATED__FIRST_BLOCK": True, "MODEL__RESNETS__DEPTH": 20}  # fmt: skip
    net = settle(build(gated_cfg("build_gated_cifar_resnet_backbone", MODEL__RESNETS__OUT_FEATURES=["res4"], **own)))
    torch.nn.init.normal_(net.policy.score.weight, std=2.0)
    x = torch.randn(8, 3, 32, 32) + 4 * torch.randn(8, 3, 1, 1)  # of different colours

    def rollout(images):
        with torch.no_grad(), recording() as trace:
            features = net.eval()(images)["res4"]
        greedy = trace.context.state.rollouts[GREEDY]
        return greedy.stops, torch.stack(greedy.levels, 1), features, trace.executed()

    together, alone = rollout(x), [rollout(image[None]) for image in x]
    assert len(together[0].unique()) > 2, "images stop at different modules"
    for got, expected in zip(together, map(torch.cat, zip(*alone, strict=True)), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_without_images_that_go_on_nothing_runs():
    net = stopping("build_gated_cifar_resnet_backbone", [1, 1]).eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), recording() as trace, counter:
        features = net(torch.randn(2, 3, 32, 32))
    first = 2 * (3 * 16 + 2 * 16 * 16) * 9 * 1024
    assert counter.get_total_flops() / 2 == pytest.approx(first, rel=1e-5)  # torch counts the graph search too
    assert features["res4"].shape == (2, 64, 8, 8) and not features["res4"].any()
    assert [step.decision.open.tolist() for step in trace.steps][1:] == [[False, False]] * 5


def test_batch_norm_in_training_survives_that_nobody_goes_on():
    net = stopping("build_gated_cifar_resnet_backbone", [1, 1]).train()
    with recording():
        net(torch.randn(2, 3, 32, 32))
    assert all(torch.isfinite(buffer).all() for buffer in net.buffers())
