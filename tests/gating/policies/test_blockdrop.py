"""BlockDrop: what it decides, its curriculum, reward and gradient."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from toy_gated import ask, features_for, gates, make

from dyn_d2.gating.decisions import log_likelihood
from dyn_d2.utils.errors import UserError

JOINT = ("STAGE", "joint")


def test_all_blocks_are_decided_about_before_the_first():
    policy = make("blockdrop", *JOINT).eval()
    images = torch.randn(5, 3, 32, 32)
    prob = policy.begin(images, None)
    assert prob.shape == (5, 4)
    trace = ask(policy, [torch.full_like(x, float("nan")) for x in features_for(policy)], images)
    for index, gate in enumerate(gates(trace)):
        assert torch.equal(gate, (prob[:, index] > 0.5).float())


def test_the_policy_network_costs_what_torch_counts():
    policy = make("blockdrop", *JOINT).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        policy.begin(torch.randn(1, 3, 32, 24), None)
    assert policy.begin_cost(32, 24) == counter.get_total_flops() / 2
    assert make("blockdrop").begin_cost(32, 24) == 0


def test_pre_training_opens_everything():
    policy = make("blockdrop").train()
    trace = ask(policy, features_for(policy))
    assert all(gate.all() for gate in gates(trace)) and policy.losses(trace, {}) == {} and not policy.wants_greedy


def test_samples_come_from_bounded_probabilities():
    policy = make("blockdrop", *JOINT, "BLOCKDROP.INIT_BIAS", 50.0).train()
    opened = torch.stack(gates(ask(policy, features_for(policy, 3000, 1, 1), torch.zeros(3000, 3, 8, 8))), 1)
    assert float(opened.mean()) == pytest.approx(0.8, abs=0.02)


def test_the_curriculum_adds_one_block_after_the_other_from_the_end():
    policy = make("blockdrop", *JOINT, "BLOCKDROP.CURRICULUM.ITERS", 8, "BLOCKDROP.INIT_BIAS", -50.0)
    found = []
    for step in range(10):
        policy.steps.fill_(step)
        found.append(policy.decided)
        trace = ask(policy.eval(), features_for(policy, 2))
        assert [bool(gate.any()) for gate in gates(trace)] == [True] * (4 - found[-1]) + [False] * found[-1]
    assert found == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    policy.enter_stage()
    assert policy.steps == 0


def _trained(policy, images: int = 6):
    trace = ask(policy.train(), features_for(policy, images))
    trace.context.accuracies = (torch.rand(images) < 0.5).float()
    trace.context.greedy = ask(policy.eval(), features_for(policy, images))
    trace.context.greedy.context.accuracies = (torch.rand(images) < 0.5).float()
    policy.train()
    return trace


@pytest.mark.parametrize("step", [0, 5, 8])
def test_the_loss_is_that_of_the_paper(step):
    policy = make("blockdrop", *JOINT, "BLOCKDROP.CURRICULUM.ITERS", 8, "BLOCKDROP.CURRICULUM.ENTROPY", 0.3)
    policy.steps.fill_(step)
    decided, gamma, entropy_weight = (policy.decided, 1.0, 0.3) if step < 8 else (4, 5.0, 0.0)
    trace = _trained(policy)
    expected = 0.0
    for n in range(6):
        rewards = []
        for way in (trace, trace.context.greedy):
            use = sum(float(gate[n]) for gate in gates(way)) / 4
            rewards.append(1 - use**2 if way.context.accuracies[n] else -gamma)
        for index in range(4 - decided, 4):
            prob = 0.8 * trace.context.state[n, index] + 0.2 * (1 - trace.context.state[n, index])
            expected -= (rewards[0] - rewards[1]) * float(log_likelihood(gates(trace)[index][n], prob.detach())) / 6
            entropy = -(prob * prob.log() + (1 - prob) * (1 - prob).log())
            expected -= entropy_weight * float(entropy.detach()) / 6
    losses = policy.losses(trace, {})
    assert losses["loss_policy"].item() == pytest.approx(expected, abs=1e-4)
    assert policy.steps == step + 1
    losses["loss_policy"].backward()
    assert policy.network.score.weight.grad.any()


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="BLOCKDROP"):
        make("blockdrop", "BLOCKDROP.ALPHA", 0.3)
    policy = make("blockdrop", *JOINT).train()
    trace = ask(policy, features_for(policy))
    with pytest.raises(UserError, match="ImageClassifier"):
        policy.losses(trace, {})
