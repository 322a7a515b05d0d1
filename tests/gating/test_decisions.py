"""Decisions: exact zeros, gradients, statistics of the noise, log-probabilities."""

import math

import pytest
import torch

from dyn_d2.gating import Decision
from dyn_d2.gating.decisions import (
    bernoulli,
    bounded,
    fixed,
    gumbel,
    hard_threshold,
    log_likelihood,
    noisy_argmax,
    relu_gates,
    soft,
)


def test_hard_threshold_rounds_forward_and_passes_the_gradient_of_the_probability():
    logit = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    prob = torch.sigmoid(logit)
    decision = hard_threshold(prob)
    assert decision.gate.tolist() == [0.0, 0.0, 1.0]  # 0.5 is not above the threshold
    weight = torch.tensor([1.0, 2.0, 3.0])
    (decision.gate * weight).sum().backward()
    expected = weight * prob * (1 - prob)
    assert torch.allclose(logit.grad, expected)
    assert decision.relaxed and decision.open.tolist() == [False, False, True]


def test_closed_gates_are_exactly_zero_for_any_probability():
    prob = torch.rand(10_000, requires_grad=True)
    gate = hard_threshold(prob).gate
    assert set(gate.detach().unique().tolist()) == {0.0, 1.0}


def test_threshold_is_a_parameter_and_nothing_is_relaxed_without_gradient():
    decision = hard_threshold(torch.tensor([0.2, 0.4]), 0.3)
    assert decision.gate.tolist() == [0.0, 1.0]
    assert not decision.relaxed


def test_soft_is_the_probability():
    prob = torch.tensor([0.0, 0.25, 1.0], requires_grad=True)
    decision = soft(prob)
    assert torch.equal(decision.gate, prob)
    assert decision.open.tolist() == [False, True, True]


def test_bernoulli_samples_with_the_probability_and_knows_its_logarithm():
    prob = torch.full((20_000,), 0.3, requires_grad=True)
    decision = bernoulli(prob)
    assert abs(decision.gate.mean().item() - 0.3) < 0.02
    assert not decision.relaxed
    expected = torch.where(decision.open, math.log(0.3), math.log(0.7))
    assert torch.allclose(decision.log_prob, expected, atol=1e-6)
    decision.log_prob.sum().backward()
    assert torch.allclose(prob.grad, torch.where(decision.open, 1 / 0.3, -1 / 0.7), atol=1e-4)


def test_saturated_probabilities_keep_finite_logarithms():
    prob = torch.tensor([0.0, 1.0], requires_grad=True)
    decision = bernoulli(prob)
    assert decision.gate.tolist() == [0.0, 1.0]
    assert decision.log_prob.isfinite().all()
    decision.log_prob.sum().backward()
    assert prob.grad.isfinite().all()


def test_gumbel_chooses_with_the_probability_of_the_soft_max():
    logits = torch.tensor([0.2, 1.0]).expand(40_000, 2)
    decision = gumbel(logits)
    expected = torch.softmax(torch.tensor([0.2, 1.0]), 0)[1].item()
    assert abs(decision.gate.mean().item() - expected) < 0.02
    assert torch.allclose(decision.prob, torch.full((40_000,), expected))


def test_gumbel_gradient_is_that_of_the_relaxed_sample():
    logits = torch.tensor([[0.3, -0.1]] * 5, requires_grad=True)
    torch.manual_seed(0)
    gumbel(logits, temperature=0.7).gate.sum().backward()
    torch.manual_seed(0)
    noise = -(-torch.rand_like(logits).clamp(1e-9, 1 - 1e-7).log()).log()
    again = logits.detach().requires_grad_()
    ((again + noise) / 0.7).softmax(-1)[:, 1].sum().backward()
    assert torch.allclose(logits.grad, again.grad)


def test_gumbel_without_noise_is_the_arg_max():
    assert gumbel(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), noise=False).gate.tolist() == [1.0, 0.0]


def test_noisy_argmax_flips_as_often_as_the_difference_of_two_normals_says():
    logits = torch.tensor([0.0, 1.0]).expand(40_000, 2)
    open_rate = noisy_argmax(logits, noise=1.0).gate.mean().item()
    expected = 0.5 * (1 + math.erf(1 / math.sqrt(2) / math.sqrt(2)))  # P(N(1, 2) > 0)
    assert abs(open_rate - expected) < 0.02


@pytest.mark.parametrize("options", [{"training": False}, {"noise": 0.0}])
def test_noisy_argmax_without_noise_is_deterministic(options):
    logits = torch.randn(50, 3, 2)
    decision = noisy_argmax(logits, **options)
    assert torch.equal(decision.gate, (logits[..., 1] > logits[..., 0]).float())
    assert decision.gate.shape == (50, 3)


def test_noisy_argmax_has_the_gradient_of_the_noisy_soft_max():
    logits = torch.randn(4, 3, 2, requires_grad=True)
    torch.manual_seed(1)
    noisy_argmax(logits).gate.sum().backward()
    torch.manual_seed(1)
    again = logits.detach().requires_grad_()
    (again + torch.randn_like(again)).softmax(-1)[..., 1].sum().backward()
    assert torch.allclose(logits.grad, again.grad)


def test_relu_gates_are_exactly_zero_where_closed_and_float32_in_half_precision():
    scores = torch.tensor([[-1.0, 0.0, 6e-8, 2.0]], dtype=torch.float16, requires_grad=True)
    decision = relu_gates(scores)
    assert decision.gate.dtype == torch.float32
    assert decision.open.tolist() == [[False, False, True, True]]
    decision.gate.sum().backward()
    assert scores.grad.tolist() == [[0.0, 0.0, 1.0, 1.0]]


def test_fixed_is_what_was_given():
    decision = fixed(torch.tensor([True, False]))
    assert decision.gate.tolist() == [1.0, 0.0]
    assert decision.prob is None and decision.log_prob is None and not decision.relaxed


def test_empty_batches():
    empty = torch.zeros(0, requires_grad=True)
    for decision in (hard_threshold(empty), soft(empty), bernoulli(empty), relu_gates(empty)):
        assert decision.open.shape == (0,)
    hard_threshold(empty).gate.sum().backward()
    pairs = torch.zeros(0, 4, 2, requires_grad=True)
    assert gumbel(pairs).gate.shape == noisy_argmax(pairs).gate.shape == (0, 4)


def test_open_ignores_the_gradient():
    assert Decision(torch.tensor([0.5, 0.0], requires_grad=True)).open.requires_grad is False


def test_likelihood_of_actions_and_bounded_probabilities():
    prob, action = torch.rand(50), torch.rand(50) < 0.5
    found = log_likelihood(action, prob)
    for p, a, value in zip(prob.tolist(), action.tolist(), found.tolist(), strict=True):
        assert value == pytest.approx(math.log(p ** int(a) * (1 - p) ** (1 - int(a))), abs=1e-4)
    limits = bounded(torch.tensor([0.0, 0.5, 1.0]), 0.8)
    assert limits.tolist() == pytest.approx([0.2, 0.5, 0.8])
    torch.testing.assert_close(bounded(prob, 1.0), prob)
