"""ConvNet-AIG, random skipping, a fixed part of the network, and all of it."""

import pytest
import torch
from toy_gated import ask, features_for, gates, make

from dyn_d2.gating.policies.fixed import kept
from dyn_d2.gating.policies.random_skip import survival_rates


def test_aig_gates_start_mostly_open_and_compute_what_the_paper_draws():
    policy = make("convnet_aig").eval()
    x = torch.randn(5, 6, 4, 4)
    gate = policy.gates[0]
    hidden = gate.norm(gate.hidden(x.mean((2, 3)))[:, :, None, None])[:, :, 0, 0].relu()
    prob = ask(policy, [x] * 4).steps[0].decision.prob
    assert torch.allclose(prob, gate.scores(hidden).softmax(1)[:, 1], atol=1e-6)
    assert ((prob > 0.8) & (prob < 0.92)).all()
    assert policy.decision_cost(0, 4, 4) == 6 * 16 + 16 * 2


def test_aig_targets_are_one_for_all_or_one_for_each_block():
    rates = [1.0, 0.5, 0.7, 0.2]
    policy = make("convnet_aig", "AIG.TARGET_RATES", rates, "AIG.LOSS_WEIGHT", 2.0)
    trace = ask(policy, features_for(policy))
    expected = sum((t - gate.mean().item()) ** 2 for t, gate in zip(rates, gates(trace), strict=True)) / 4
    assert policy.losses(trace, {})["loss_rate"].item() == pytest.approx(2 * expected, abs=1e-6)
    assert make("convnet_aig", "TARGET_RATE", 0.3).targets == [0.3] * 4
    with pytest.raises(ValueError, match="MODEL.POLICY.AIG.TARGET_RATES has 2 rates, the backbone 4 gated blocks"):
        make("convnet_aig", "AIG.TARGET_RATES", [0.5, 0.5])
    with pytest.raises(ValueError, match="MODEL.POLICY.AIG.TARGET_RATES is 1.5"):
        make("convnet_aig", "AIG.TARGET_RATES", [0.5, 0.5, 1.5, 0.5])


@pytest.mark.parametrize("target", [0.3, 0.6])
def test_the_rate_loss_alone_reaches_the_target(target):
    policy = make("convnet_aig", "TARGET_RATE", target)
    optimizer = torch.optim.SGD(policy.parameters(), 0.5, momentum=0.9)

    def step() -> torch.Tensor:
        trace = ask(policy, features_for(policy, 32, 1, 1), torch.zeros(32, 3, 4, 4))
        optimizer.zero_grad()
        policy.losses(trace, {})["loss_rate"].backward()
        optimizer.step()
        return torch.stack(gates(trace)).mean().detach()

    for _ in range(100):
        step()
    assert abs(torch.stack([step() for _ in range(20)]).mean().item() - target) < 0.05


@pytest.mark.parametrize("kind", ["block", "group", "channel"])
def test_random_skip_runs_its_rate_in_training_and_evaluation(kind):
    policy = make("random_skip", "TARGET_RATE", 0.3, kind=kind)
    features = [torch.zeros(4000, 6, 1, 1)] * 4
    for mode in (True, False):
        trace = ask(policy.train(mode), features, torch.zeros(4000, 3, 1, 1))
        assert abs(torch.stack(gates(trace)).mean().item() - 0.3) < 0.02
        assert trace.steps[0].decision.prob.unique().item() == pytest.approx(0.3)


def test_random_skip_follows_torchs_seed():
    policy = make("random_skip").eval()
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(torch.stack(gates(ask(policy, [torch.zeros(64, 6, 1, 1)] * 4))))
    # `ask` draws the images after the seed, in the same way each time.
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize(("count", "rate"), [(4, 0.7), (18, 0.5), (1, 0.4), (54, 0.99)])
def test_survival_rates_have_the_mean_that_was_asked_for(count, rate):
    linear = survival_rates(count, rate, "linear")
    assert sum(linear) / count == pytest.approx(rate)
    assert linear == sorted(linear, reverse=True) and all(0 <= p <= 1 for p in linear)
    assert survival_rates(count, rate, "constant") == [rate] * count


def test_linear_decay_says_which_rate_it_can_reach():
    with pytest.raises(ValueError, match="RANDOM.SCHEDULE linear it is at least 0.472 for 18 units"):
        survival_rates(18, 0.3, "linear")
    with pytest.raises(ValueError, match="MODEL.POLICY.RANDOM.SCHEDULE is 'cosine'"):
        make("random_skip", "RANDOM.SCHEDULE", "cosine")


@pytest.mark.parametrize(
    ("count", "rate", "order", "expected"),
    [
        (4, 0.5, "last", "1100"),
        (4, 0.5, "even", "0101"),
        (10, 0.3, "even", "0001001001"),
        (6, 1.0, "even", "111111"),
        (3, 0.01, "last", "000"),
    ],
)
def test_fixed_keeps_a_share(count, rate, order, expected):
    assert "".join("01"[keep] for keep in kept(count, rate, order)) == expected


def test_fixed_closes_blocks_by_position_and_parts_of_groups_and_channels():
    blocks = make("fixed", "TARGET_RATE", 0.5, "FIXED.ORDER", "even")
    assert torch.stack(gates(ask(blocks, features_for(blocks, 2)))).tolist() == [[0, 0], [1, 1], [0, 0], [1, 1]]
    groups = make("fixed", "TARGET_RATE", 0.67, kind="group")
    assert all(gate.tolist() == [[1, 1, 0]] * 5 for gate in gates(ask(groups, features_for(groups))))


def test_fixed_closes_units_by_name():
    policy = make("fixed", "FIXED.CLOSED", ["res2.1", "res3.*"], kind="group")
    assert [bool(gate.any()) for gate in gates(ask(policy, features_for(policy)))] == [True, False, False, False]
    with pytest.raises(ValueError, match="MODEL.POLICY.FIXED.CLOSED names 'res5.0', but the units are res2.0, res2.1"):
        make("fixed", "FIXED.CLOSED", ["res5.0"])


@pytest.mark.parametrize("kind", ["block", "group", "channel"])
def test_all_open_is_free_and_has_no_parameters(kind):
    policy = make("all_open", kind=kind)
    trace = ask(policy, features_for(policy))
    assert all((gate == 1).all() for gate in gates(trace))
    assert not any(cost.gate for cost in trace.costs) and not policy.state_dict()
    if kind != "channel":
        assert trace.executed().tolist() == trace.expected().tolist() == [trace.dense()] * 5
