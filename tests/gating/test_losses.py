"""Each loss against its equation, written out in loops."""

import itertools
import math

import pytest
import torch

from dyn_d2.gating.decisions import bernoulli, hard_threshold
from dyn_d2.gating.losses import (
    category_loss,
    drop_reward,
    executed_cost,
    execution_loss,
    execution_rate,
    flops_loss,
    gate_sparsity,
    policy_gradient_loss,
    skip_returns,
    target_rate_loss,
)


def slow_return(actions, loss, alpha, beta, i):
    """r_i below Eq. 2.6, with C_j = 1."""
    count = len(actions)
    saved = sum((1 - actions[j]) * 1.0 for j in range(i, count))
    return -(beta * loss - alpha / count * saved)


@pytest.mark.parametrize("beta", [None, 1.0, 0.3])
def test_skip_returns_are_those_of_the_thesis(beta):
    opened = torch.randint(0, 2, (5, 7))
    losses, alpha = torch.rand(5), 0.4
    returns = skip_returns(opened, losses, alpha, beta)
    used = alpha / 7 if beta is None else beta
    for n, i in itertools.product(range(5), range(7)):
        expected = slow_return(opened[n].tolist(), losses[n].item(), alpha, used, i)
        assert returns[n, i].item() == pytest.approx(expected, abs=1e-6)


def test_policy_gradient_loss_is_the_mean_over_images_of_the_sum_over_gates():
    log_probs = torch.randn(3, 4, requires_grad=True)
    returns = torch.randn(3, 4, requires_grad=True)
    loss = policy_gradient_loss(log_probs, returns)
    expected = -sum(log_probs[n, i].item() * returns[n, i].item() for n in range(3) for i in range(4)) / 3
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    loss.backward()
    assert torch.allclose(log_probs.grad, -returns / 3)
    assert returns.grad is None


def test_reinforce_gradient_is_in_expectation_that_of_the_enumerated_objective():
    """Two gates: the gradient of Eq. 2.5 by enumeration of four paths, against the mean of many samples.

    With beta = 1 the return is the reward that Eq. 2.6 is derived from. The reward of gates that were decided before is
    left out of r_i; in expectation that changes nothing.
    """
    path_losses = torch.tensor([[2.0, 1.2], [0.9, 0.4]])  # by action of gate 1 and of gate 2
    logits = torch.tensor([0.3, -0.5], requires_grad=True)
    alpha, images = 0.8, 200_000

    prob = torch.sigmoid(logits)
    objective = 0.0
    for g in itertools.product((0, 1), repeat=2):
        chance = math.prod(prob[i] if g[i] else 1 - prob[i] for i in range(2))
        objective = objective + chance * (path_losses[g] - alpha / 2 * sum(1 - a for a in g))
    (exact,) = torch.autograd.grad(objective, logits)

    decisions = [bernoulli(torch.sigmoid(logits)[i].expand(images)) for i in range(2)]
    opened = torch.stack([decision.open for decision in decisions], 1)
    losses = path_losses[opened[:, 0].long(), opened[:, 1].long()]
    returns = skip_returns(opened, losses, alpha, beta=1.0)
    log_probs = torch.stack([decision.log_prob for decision in decisions], 1)
    (sampled,) = torch.autograd.grad(policy_gradient_loss(log_probs, returns), logits)
    assert torch.allclose(sampled, exact, atol=0.01)


def test_subtracting_a_baseline_leaves_the_expected_gradient_and_lowers_its_variance():
    prob = torch.tensor(0.4, requires_grad=True)

    def gradients(baseline: float) -> torch.Tensor:
        results = []
        for _ in range(300):
            decision = bernoulli(prob.expand(20))
            losses = torch.where(decision.open, 5.0, 6.0)
            returns = skip_returns(decision.open[:, None], losses, 0.0, beta=1.0) - baseline
            loss = policy_gradient_loss(decision.log_prob[:, None], returns)
            results.append(torch.autograd.grad(loss, prob)[0])
        return torch.stack(results)

    plain, reduced = gradients(0.0), gradients(-6.0)
    assert reduced.mean().item() == pytest.approx(-1.0, abs=0.1)  # d/dp (5 p + 6 (1 - p))
    assert reduced.std() < plain.std() / 3


def test_gate_sparsity_sums_over_layers_and_channels_and_averages_over_images():
    gates = [torch.rand(4, 3, requires_grad=True), torch.rand(4, 6)]
    expected = sum(gate[n].sum().item() for gate in gates for n in range(4)) / 4
    loss = gate_sparsity(gates)
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    loss.backward()
    assert torch.allclose(gates[0].grad, torch.full((4, 3), 0.25))


def test_execution_loss_compares_the_rate_of_each_block():
    gates = [torch.randint(0, 2, (6, 4)).float() for _ in range(3)] + [torch.ones(6)]
    expected = sum((0.6 - float(gate.mean())) ** 2 for gate in gates)
    assert execution_loss(gates, 0.6).item() == pytest.approx(expected, abs=1e-6)
    assert execution_rate(gates[0]).item() == pytest.approx(float(gates[0].mean()))


def test_flops_loss_weighs_each_group_by_its_cost():
    gates = [torch.randint(0, 2, (5, 2)).float(), torch.randint(0, 2, (5,)).float()]
    costs = [torch.tensor([3.0, 4.0]), torch.tensor([10.0])]
    f = sum(float(gates[0][n, i]) * float(costs[0][i]) for n in range(5) for i in range(2)) / 5 + 10.0 * float(
        gates[1].mean()
    )
    assert executed_cost(gates, costs).item() == pytest.approx(f, abs=1e-5)
    assert flops_loss(executed_cost(gates, costs), 20.0, 0.5).item() == pytest.approx((f / 20 - 0.5) ** 2, abs=1e-6)


def test_category_loss_is_the_weighted_cross_entropy_of_each_controller():
    logits = [torch.randn(4, 3), torch.randn(4, 3)]
    categories, weights = torch.tensor([0, 2, 1, 1]), [0.001, 0.1]
    expected = 0.0
    for scores, weight in zip(logits, weights, strict=True):
        for n in range(4):
            chances = [math.exp(float(value)) for value in scores[n]]
            expected -= weight * math.log(chances[categories[n]] / sum(chances)) / 4
    assert category_loss(logits, categories, weights).item() == pytest.approx(expected, abs=1e-6)


def test_target_rate_loss_is_the_mean_over_blocks():
    gates = [torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.ones(4)]
    assert target_rate_loss(gates, [0.7, 0.8]).item() == pytest.approx((0.2**2 + 0.2**2) / 2)


def test_straight_through_gradient_reaches_the_probabilities():
    prob = torch.tensor([0.6, 0.7, 0.2, 0.1], requires_grad=True)
    execution_loss([hard_threshold(prob).gate], 0.9).backward()
    assert torch.allclose(prob.grad, torch.full((4,), 2 * (0.5 - 0.9) / 4))


def test_empty_batches_give_finite_losses_with_backward():
    gate = torch.zeros(0, 2, requires_grad=True)
    scores = torch.zeros(0, 3, requires_grad=True)
    total = (
        policy_gradient_loss(gate, skip_returns(torch.zeros(0, 2), torch.zeros(0), 0.1))
        + gate_sparsity([gate])
        + execution_loss([gate], 0.5)
        + executed_cost([gate], [torch.ones(2)])
        + category_loss([scores], torch.zeros(0, dtype=torch.int64), [1.0])
        + target_rate_loss([gate], [0.5])
    )
    total.backward()
    assert total.isfinite() and gate.grad.shape == (0, 2)


def test_the_reward_of_blockdrop():
    opened = torch.tensor([[1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
    found = drop_reward(opened, torch.tensor([1.0, 1.0, 0.0, 0.5]), 5.0)
    assert found.tolist() == pytest.approx([1 - 0.25, 0.0, -5.0, 0.5 * (1 - 1 / 16) - 2.5])
