"""The budget of a policy: the share that it counts, its gradient, and that gates follow it."""

import pytest
import torch
from toy_gated import ask, features_for, make, policy_cfg

from dyn_d2.gating.budget import Budget, differentiable_share
from dyn_d2.gating.policies import build_policy
from dyn_d2.utils.errors import UserError

COSTS = [10.0, 20.0, 30.0, 40.0]  # of the toy's units
BUDGET = ("BUDGET.SHARE", 0.5)


def _gate_cost(trace) -> float:
    return float(trace.gates()[0])


def test_the_share_of_hard_gates_is_what_ran_with_the_gradient_of_each_gate():
    policy = make("skipnet_rnn")
    trace = ask(policy, features_for(policy))
    share = differentiable_share(trace)
    ran = sum(cost * step.decision.open.float().mean().item() for cost, step in zip(COSTS, trace.steps, strict=True))
    assert share.item() == pytest.approx((ran + _gate_cost(trace)) / 100)
    gates = [step.decision.gate for step in trace.steps]
    for gate, cost, grad in zip(gates, COSTS, torch.autograd.grad(share, gates), strict=True):
        assert torch.allclose(grad, torch.full((5,), cost / 100 / 5)), gate


def test_the_share_of_sampled_gates_is_the_expected_one():
    policy = make("skipnet_rnn", "STAGE", "hrl")
    trace = ask(policy, features_for(policy))
    expected = sum(cost * step.decision.prob.mean().item() for cost, step in zip(COSTS, trace.steps, strict=True))
    assert differentiable_share(trace).item() == pytest.approx((expected + _gate_cost(trace)) / 100, rel=1e-6)


def test_groups_count_each_for_itself():
    policy = make("cdb", kind="group")
    trace = ask(policy, features_for(policy))
    ran = sum(c * s.decision.open.float().sum(1).mean().item() for c, s in zip(COSTS, trace.steps, strict=True))
    assert differentiable_share(trace).item() == pytest.approx((ran + _gate_cost(trace)) / 300, abs=1e-6)


@pytest.mark.parametrize(("name", "opts"), [
    ("skipnet_rnn", ("SKIPNET.RELAXATION", "noisy", "SKIPNET.INIT_BIAS", 2.0)),
    ("skipnet_rnn", ("STAGE", "hrl", "SKIPNET.INIT_BIAS", 2.0, "SKIPNET.ALPHA", 0.0)),
    ("convnet_aig", ("AIG.LOSS_WEIGHT", 0.0)), ("cdb", ()),
])  # fmt: skip
def test_gates_follow_the_penalty(name, opts):
    target = 0.2 if name == "cdb" else 0.5  # new controllers open about half
    policy = make(name, *opts, "BUDGET.SHARE", target)
    features, images = features_for(policy, 64, 2, 2), torch.randn(64, 3, 4, 4)
    optimizer = torch.optim.Adam(policy.parameters(), 0.03)
    shares = []
    for _ in range(50):
        trace = ask(policy, features, images)
        shares.append(differentiable_share(trace).item() - _gate_cost(trace) / 100)
        policy.budget.target = target + _gate_cost(trace) / 100  # gates are expensive beside these toy units
        optimizer.zero_grad()
        policy.budget(trace).backward()
        optimizer.step()
    assert shares[0] > target + 0.1 and abs(sum(shares[-10:]) / 10 - target) < 0.1


def test_the_price_rises_above_the_target_falls_below_it_and_is_kept_in_the_checkpoint():
    policy = make("skipnet_rnn", *BUDGET, "BUDGET.BY", "price", "BUDGET.RATE", 0.1, "SKIPNET.INIT_BIAS", 9.0)
    trace = ask(policy, features_for(policy))
    share = differentiable_share(trace).item()
    assert policy.budget(trace).item() == 0.0
    assert policy.budget.price.item() == pytest.approx(0.1 * (share - 0.5))
    assert policy.budget(trace).item() == pytest.approx(0.1 * (share - 0.5) * share)
    assert policy.state_dict()["budget.price"].item() == pytest.approx(0.2 * (share - 0.5))
    policy.budget.target = 1000.0
    policy.budget(trace)
    assert policy.budget.price.item() == 0.0  # not below
    policy.budget.target, policy.training = 0.5, False
    policy.budget.eval()(trace)
    assert policy.budget.price.item() == 0.0  # nor in evaluation


def test_the_budget_is_part_of_the_losses_until_the_policy_is_frozen():
    assert set(make_losses("convnet_aig")) == {"loss_rate", "loss_budget"}
    assert set(make_losses("skipnet_rnn")) == {"loss_budget"}
    assert make_losses("convnet_aig", "STAGE", "fixed") == {}
    assert make("skipnet_rnn", *BUDGET).adds_to_task and not make("skipnet_rnn").adds_to_task
    assert not make("cdb", "STAGE", "fixed", *BUDGET).adds_to_task
    loss = make_losses("blockdrop", "STAGE", "pretrain")["loss_budget"]
    assert loss.item() == 0.0  # nothing is decided yet


def make_losses(name: str, *opts) -> dict[str, torch.Tensor]:
    policy = make(name, *opts, *BUDGET)
    trace = ask(policy, features_for(policy))
    trace.context.image_losses = torch.rand(5)
    return policy.training_losses(trace, {})


def test_what_cannot_be_drawn_to_a_budget_says_so():
    for name, kind in (("deepmoe", "channel"), ("random_skip", "block"), ("all_open", "block"), ("pmn", "block")):
        with pytest.raises(ValueError, match=f"{name} has no probabilities .* choose one of blockdrop, cdb, convnet_aig"):
            make(name, *BUDGET, kind=kind)
    policy = make("deepmoe", kind="channel")
    with pytest.raises(UserError, match="depends on other units"):
        differentiable_share(ask(policy, features_for(policy)))
    assert Budget.of_keys(policy_cfg("skipnet_rnn")) is None
    assert build_policy(policy_cfg("skipnet_rnn"), make("skipnet_rnn").units).budget is None
