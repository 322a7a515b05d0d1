"""IDK classifiers that learn: the objective they reach, against trying every threshold."""

import numpy as np
import pytest
import torch
from idk_tables import random_table
from sklearn.linear_model import LogisticRegression

from dyn_d2.methods.idk_cascade.calibrators import calibrate
from dyn_d2.methods.idk_cascade.measures import entropy, margin
from dyn_d2.methods.idk_cascade.outcome import evaluate, objective
from dyn_d2.methods.idk_cascade.rules import Logistic, Network, NetworkRule, Threshold, rule_from_state
from dyn_d2.methods.idk_cascade.search import Goal
from dyn_d2.methods.idk_cascade.table import PredictionTable
from dyn_d2.methods.idk_cascade.training import (
    cost_aware_candidates,
    gradient,
    network_candidates,
    oblivious_candidate,
    oblivious_network_candidate,
)


def _objective(table, outcome, weight: float) -> float:
    return 1 - outcome.accuracy + weight * outcome.relative_cost


@pytest.mark.parametrize("weight", [0.02, 0.1, 0.3])
def test_cost_aware_comes_near_the_best_threshold(weight):
    """With one measure the sigmoid decides as a threshold does: J (Eq. 4.12) of the best one is the mark."""
    table = random_table(images=400)
    values = entropy(table.outputs[0])
    best = min(_objective(table, evaluate(table, [Threshold("entropy", a)]), weight) for a in [-1.0, *values])
    (found,) = cost_aware_candidates(table, "entropy", [weight])
    assert found.settings == {"lambda": weight} and found.rules[0].slope > 0
    assert best <= _objective(table, found.outcome, weight) <= best + 0.012


def test_a_dearer_last_model_is_asked_less():
    table = random_table(images=400)
    found = cost_aware_candidates(table, "entropy", [0.0, 0.1, 2.0])
    costs = [candidate.outcome.cost for candidate in found]
    assert costs[0] > costs[1] > costs[2] and costs[2] == pytest.approx(table.costs[0])


@pytest.mark.parametrize("joint", [True, False])
def test_three_models(joint):
    table = random_table(3, images=300)
    for candidate in cost_aware_candidates(table, "entropy", [0.05, 0.3], joint):
        weight = candidate.settings["lambda"]
        lazy, eager = (evaluate(table, [Threshold("entropy", a)] * 2) for a in (9.0, -1.0))
        mine = _objective(table, candidate.outcome, weight)
        assert mine < min(_objective(table, other, weight) for other in (lazy, eager))
    goal = Goal.as_the_last(table, 0.02)
    found = calibrate(table, "cost_aware", goal, joint=joint, lambdas=[0.02, 0.1])
    assert found.outcome.accuracy >= goal.accuracy - 1e-12 and len(found.rules) == 2


def test_oblivious_is_logistic_regression_on_what_is_wrong():
    table = random_table(images=300)
    values = entropy(table.outputs[0])
    reference = LogisticRegression(C=1e6).fit(values[:, None], table.losses[0])
    (rule,) = oblivious_candidate(table, "entropy").rules
    assert rule.slope == pytest.approx(float(reference.coef_[0, 0]), rel=0.03)
    assert rule.intercept == pytest.approx(float(reference.intercept_[0]), rel=0.03, abs=0.03)


def test_networks_learn_both_objectives_and_repeat():
    table = random_table(images=300)
    first, again = (network_candidates(table, [0.1], widths=(16, 8), epochs=15)[0] for _ in range(2))
    assert first.outcome == again.outcome
    assert np.array_equal(first.rules[0](table.outputs[0]), again.rules[0](table.outputs[0]))
    lazy = evaluate(table, [Threshold("entropy", 9.0)])
    assert _objective(table, evaluate(table, first.rules), 0.1) < _objective(table, lazy, 0.1)
    wrong = oblivious_network_candidate(table, widths=(16, 8), epochs=60)
    h = wrong.rules[0](table.outputs[0])
    assert h[table.losses[0] == 1].mean() > h[table.losses[0] == 0].mean() + 0.05


def test_networks_are_judged_by_images_that_they_have_not_seen():
    """Where the answers say nothing about errors, a network still learns its own images by heart."""
    generator = np.random.default_rng(0)
    probabilities = [generator.dirichlet([1.0] * 8, 400) for _ in range(2)]
    labels = generator.integers(0, 8, 400)
    table = PredictionTable.of_classifiers(["a", "b"], probabilities, labels, [1.0, 2.0], "held_out")
    (found,) = network_candidates(table, [0.01], widths=(128, 64), epochs=150)
    assert evaluate(table, found.rules).accuracy > found.outcome.accuracy + 0.03
    assert found.outcome.accuracy < table.accuracies.max() + 0.03


def test_the_published_network_has_seven_layers():
    layers = [layer for layer in Network(10).modules() if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in layers] == [1024, 1024, 512, 512, 128, 64, 1]


def test_rules_survive_a_checkpoint(tmp_path):
    outputs = random_table().outputs[0]
    network = Network(4, (6,)).train()
    network(torch.from_numpy(outputs).float())  # statistics other than those of the start
    for rule in (Threshold("confidence", 0.7), Logistic("entropy", 2.0, -1.0), NetworkRule(network)):
        torch.save(rule.state(), tmp_path / "rule.pth")
        again = rule_from_state(torch.load(tmp_path / "rule.pth", weights_only=True))
        assert np.array_equal(rule(outputs), again(outputs))
    with pytest.raises(ValueError, match="knows 4 classes, not 3"):
        again(np.full((2, 3), 1 / 3))
    for broken in ({"kind": "oracle"}, {"kind": "threshold"}, {}):
        with pytest.raises(ValueError, match="calibrate it again"):
            rule_from_state(broken)


def test_the_written_out_gradient_is_that_of_j():
    table = random_table(4, images=30)
    generator = np.random.default_rng(1)
    h = torch.from_numpy(generator.uniform(size=(2, 3, 30))).requires_grad_()
    weights = torch.tensor([0.1, 0.7], dtype=torch.float64)
    losses, costs = torch.from_numpy(table.losses), torch.from_numpy(table.costs)
    objective(h, losses, costs, weights).sum().backward()
    found = gradient(h.detach().numpy(), table.losses, table.costs, weights.numpy()[:, None])
    assert np.allclose(found / 30, h.grad.numpy(), atol=1e-12)


def test_cost_aware_on_a_margin_passes_on_small_ones():
    table = random_table(images=400)
    (found,) = cost_aware_candidates(table, "margin", [0.1])
    values = margin(table.outputs[0])
    best = min(_objective(table, evaluate(table, [Threshold("margin", a)]), 0.1) for a in [2.0, *values])
    assert found.rules[0].slope < 0 and _objective(table, found.outcome, 0.1) <= best + 0.012
    assert found.outcome == evaluate(table, found.rules)
