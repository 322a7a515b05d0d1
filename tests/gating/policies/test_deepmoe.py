"""DeepMoE: embedding, gates, the two stages."""

import pytest
import torch
from torch.nn import functional as F
from toy_gated import ask, features_for, gates, make, policy_cfg, units

from dyn_d2.config.read import read_cfg
from dyn_d2.gating import Unit
from dyn_d2.gating.policies import build_policy


def test_the_embedding_costs_about_2_percent_of_the_base_network():
    unit = [Unit("a", "channel", 16, 16)]
    cifar = build_policy(policy_cfg("deepmoe"), unit)
    assert 0.015 < cifar.begin_cost(32, 32) / 125.5e6 < 0.03  # ResNet-56
    imagenet = build_policy(policy_cfg("deepmoe", "DEEPMOE.LAYERS", 5), unit)
    assert 0.015 < imagenet.begin_cost(224, 224) / 4.09e9 < 0.03  # ResNet-50
    assert len(imagenet.embedding.convs) == 5
    assert imagenet.decision_cost(0, 7, 7) == 128 * 16


def test_gates_are_relu_of_a_bias_free_head_on_the_embedding_of_the_image():
    policy = make("deepmoe", kind="channel").eval()
    images = torch.randn(3, 3, 20, 14)
    x = images
    for conv, norm in zip(policy.embedding.convs, policy.embedding.norms, strict=True):
        x = norm(conv(x)).relu()
    embedding = x.mean((2, 3))
    for head, gate in zip(policy.heads, gates(ask(policy, features_for(policy, 3), images)), strict=True):
        assert head.bias is None
        assert torch.allclose(gate, (embedding @ head.weight.T).relu(), atol=1e-5)


def test_gates_do_not_depend_on_the_features():
    policy = make("deepmoe", kind="channel").eval()
    images = torch.randn(5, 3, 32, 32)
    first, second = (gates(ask(policy, features_for(policy), images)) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_new_gates_are_open_and_about_1():
    policy = make("deepmoe", kind="channel", size=64).train()
    values = torch.cat(gates(ask(policy, features_for(policy, 16), torch.randn(16, 3, 32, 32))))
    assert (values > 0).all()
    assert 0.7 < values.mean().item() < 1.3


def test_joint_losses_are_those_of_the_thesis():
    policy = make("deepmoe", "DEEPMOE.LAMBDA", 0.5, "DEEPMOE.MU", 2.0, kind="channel")
    labels = torch.tensor([0, 3, 9, 1, 1])
    trace = ask(policy, features_for(policy), labels=labels)
    losses = policy.losses(trace, {})
    sparsity = sum(gate.abs().sum().item() for gate in gates(trace)) / 5
    assert losses["loss_gates"].item() == pytest.approx(0.5 * sparsity, rel=1e-5)
    expected = 2.0 * F.cross_entropy(policy.classifier(trace.context.state), labels)
    assert losses["loss_embedding"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_embedding_loss_needs_labels_and_a_weight():
    policy = make("deepmoe", "DEEPMOE.MU", 1.0, kind="channel")
    assert set(policy.losses(ask(policy, features_for(policy)), {})) == {"loss_gates"}
    assert make("deepmoe", kind="channel").classifier is None


def test_sparsity_alone_closes_channels():
    policy = make("deepmoe", "DEEPMOE.LAMBDA", 1.0, kind="channel", size=16)
    optimizer = torch.optim.SGD(policy.heads.parameters(), 0.002)
    features, images = features_for(policy), torch.randn(5, 3, 32, 32)
    for _ in range(30):
        optimizer.zero_grad()
        policy.losses(ask(policy, features, images), {})["loss_gates"].backward()
        optimizer.step()
    opened = torch.cat([gate > 0 for gate in gates(ask(policy, features, images))])
    assert opened.float().mean().item() < 0.6


def test_fine_tuning_freezes_gates_and_embedding_with_their_statistics():
    policy = make("deepmoe", "STAGE", "finetune", "DEEPMOE.MU", 1.0, kind="channel").train()
    assert not any(parameter.requires_grad for parameter in policy.parameters())
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    trace = ask(policy, features_for(policy), labels=torch.zeros(5, dtype=torch.int64))
    assert policy.losses(trace, {}) == {} and not policy.adds_losses
    assert not any(step.decision.relaxed for step in trace.steps)
    assert all(torch.equal(before[key], value) for key, value in policy.state_dict().items())


def test_a_threshold_closes_small_gates_in_evaluation_only():
    policy = make("deepmoe", "DEEPMOE.THRESHOLD", 1.0, kind="channel", size=64)
    features, images = features_for(policy), torch.randn(5, 3, 32, 32)
    assert (torch.cat(gates(ask(policy, features, images))) > 0).all()
    values = torch.cat(gates(ask(policy.eval(), features, images)))
    assert (values == 0).any()
    assert ((values == 0) | (values > 1.0)).all()


def test_bad_values_name_their_key():
    with pytest.raises(ValueError, match="MODEL.POLICY.DEEPMOE.LAYERS 0"):
        make("deepmoe", "DEEPMOE.LAYERS", 0, kind="channel")
    with pytest.raises(ValueError, match="LAMBDA, MU and THRESHOLD"):
        make("deepmoe", "DEEPMOE.LAMBDA", -1.0, kind="channel")


def test_latent_mixture_weights_are_a_soft_max_of_the_embedding():
    plain, mixed = (make("deepmoe", "DEEPMOE.SOFTMAX", on, kind="channel", size=64) for on in (False, True))
    mixed.embedding.load_state_dict(plain.embedding.state_dict())
    images = torch.randn(16, 3, 32, 32)
    embedding, weights = (policy.eval().begin(images, None) for policy in (plain, mixed))
    assert torch.allclose(weights, embedding.softmax(1)) and torch.allclose(weights.sum(1), torch.ones(16))
    values = torch.cat(gates(ask(mixed.train(), features_for(mixed, 16), images)))
    assert (values > 0).float().mean() > 0.99 and 0.7 < values.mean().item() < 1.3


def test_the_price_falls_to_nothing_at_the_target():
    policy = make("deepmoe", "DEEPMOE.LAMBDA", 0.5, "DEEPMOE.TARGET_RATE", 0.5, kind="channel")
    for running, price in ((1.0, 0.5), (0.6, 0.5), (0.55, 0.25), (0.5, 0.0), (0.2, 0.0)):
        gate = (torch.arange(100) < 100 * running).float()[None]
        assert float(policy.price([gate, gate])) == pytest.approx(price, abs=1e-6)
    assert make("deepmoe", "DEEPMOE.LAMBDA", 0.5, kind="channel").price([gate]) == 0.5


def share_after(policy, rate, iterations):
    """Of the channels that run, where the loss of the gates alone trains the policy."""
    optimizer = torch.optim.SGD(policy.parameters(), rate)
    images = torch.randn(8, 3, 16, 16)
    for _ in range(iterations):
        trace = ask(policy, features_for(policy, 8, 1, 1), images)
        optimizer.zero_grad()
        policy.losses(trace, {})["loss_gates"].backward()
        optimizer.step()
    return float((torch.cat(gates(trace)) > 0).float().mean())


def test_sparsity_stops_at_the_target():
    policy = make("deepmoe", "DEEPMOE.LAMBDA", 0.1, "DEEPMOE.TARGET_RATE", 0.5, kind="channel", size=64)
    assert 0.4 < share_after(policy, 0.02, 150) < 0.6


@pytest.mark.parametrize("name", ["cifar", "imagenet", "cityscapes"])
def test_half_of_the_channels_run_where_closing_them_is_free(name):
    """With lambda alone the yaml files closed nearly all of them."""
    policy = build_policy(read_cfg(f"DeepMoE/{name}.yaml"), units("channel", size=64))
    assert 0.4 < share_after(policy, 0.1, 300) < 0.6
