"""Grid search and the choice at an accuracy or a budget, against trying everything."""

import itertools

import numpy as np
import pytest
from idk_tables import random_table, slow_outcome

from dyn_d2.methods.idk_cascade.calibrators import calibrate, candidates
from dyn_d2.methods.idk_cascade.measures import entropy
from dyn_d2.methods.idk_cascade.outcome import evaluate
from dyn_d2.methods.idk_cascade.rules import Threshold
from dyn_d2.methods.idk_cascade.search import Candidate, Goal, alphas, front, grid_candidates, stage_wise
from dyn_d2.methods.idk_cascade.table import PredictionTable


def _all_thresholds(table) -> list[tuple[float, float]]:
    """(accuracy, cost) of every way to cut the entropies of the first model, by brute force."""
    values = entropy(table.outputs[0])
    return [slow_outcome(table, [(values > a).astype(float)])[:2] for a in [-1.0, *np.unique(values)]]


def test_grid_search_of_eq_4_10_finds_the_lowest_idk_rate():
    table = random_table(images=60)
    target = float(table.accuracies[-1])
    best = min(cost for accuracy, cost in _all_thresholds(table) if accuracy >= target - 1e-12)
    found = calibrate(table, "entropy", Goal.as_the_last(table), points=1000)
    assert found.outcome.cost == pytest.approx(best) and found.outcome.accuracy >= target - 1e-12
    assert evaluate(table, found.rules) == found.outcome


def test_epsilon_of_eq_4_11_makes_it_cheaper():
    table = random_table()
    exact, loose = (calibrate(table, "confidence", Goal.as_the_last(table, eps)) for eps in (0.0, 0.05))
    assert loose.outcome.cost < exact.outcome.cost
    assert loose.outcome.accuracy >= 0.95 * table.accuracies[-1] - 1e-12


def test_a_budget_buys_the_most_accurate():
    table = random_table(images=60)
    for budget in (0.6, 0.9, 1.2):
        found = calibrate(table, "entropy", Goal(budget=budget), points=1000).outcome
        best = max(accuracy for accuracy, cost in _all_thresholds(table) if cost <= budget * table.costs[-1] + 1e-12)
        assert found.accuracy == pytest.approx(best) and found.relative_cost <= budget + 1e-12


def test_grid_has_both_extremes_and_crowds_where_the_values_do():
    values = np.concatenate([np.linspace(0, 0.01, 900), np.linspace(0.01, 2, 100)])
    tried = alphas(values, "entropy", 100)
    assert (values > tried[0]).all() and not (values > tried[-1]).any() and len(tried) == 101
    assert (tried < 0.011).sum() > 80
    tried = alphas(values, "confidence", 100)
    assert not (values < tried[0]).any() and (values < tried[-1]).all()


def test_three_models_jointly_try_all_combinations():
    table = random_table(3, images=40)
    found = grid_candidates(table, "entropy", 8)
    options = [[Threshold("entropy", a) for a in alphas(entropy(o), "entropy", 8)] for o in table.outputs[:2]]
    assert len(found) == len(options[0]) * len(options[1])
    for candidate, rules in zip(found, itertools.product(*options), strict=True):
        assert candidate.rules == rules and candidate.outcome == evaluate(table, rules)


def test_stage_wise_keeps_the_goal_and_is_never_better_than_jointly():
    table = random_table(3)
    for goal in (Goal.as_the_last(table), Goal(budget=0.7)):
        step, joint = stage_wise(table, "entropy", goal, 60), calibrate(table, "entropy", goal, points=60)
        assert evaluate(table, step.rules) == step.outcome
        if goal.budget:
            assert step.outcome.relative_cost <= 0.7 and step.outcome.accuracy <= joint.outcome.accuracy
        else:
            assert step.outcome.accuracy >= goal.accuracy - 1e-12 and step.outcome.cost >= joint.outcome.cost
    assert calibrate(table, "entropy", goal, joint=False, points=60).rules == step.rules


def test_front_has_no_point_that_another_beats():
    found = [c.outcome for c in front(candidates(random_table(3, images=50), "entropy", points=10))]
    assert all(a.cost < b.cost and a.accuracy < b.accuracy for a, b in zip(found, found[1:], strict=False))


def test_held_out_images_only():
    for split in ("test", "train"):
        with pytest.raises(ValueError, match=f"of the {split} split.*held-out"):
            calibrate(random_table(split=split), "entropy", Goal(budget=0.9))
    nothing = np.zeros((0, 4))
    empty = PredictionTable.of_classifiers(["a", "b"], [nothing, nothing], [], [1, 2], "held_out")
    with pytest.raises(ValueError, match="calibration set is empty"):
        calibrate(empty, "entropy", Goal(budget=0.9))


def test_goals_that_nothing_reaches_are_named():
    table = random_table()
    with pytest.raises(ValueError, match="no threshold reaches a budget of 0.3 .* the cheapest of .* takes 0.5"):
        calibrate(table, "entropy", Goal(budget=0.3))
    with pytest.raises(ValueError, match="no threshold reaches an accuracy of 100.00 %: the best of"):
        calibrate(table, "confidence", Goal(accuracy=1.0))
    for wrong in ({}, {"accuracy": 0.5, "budget": 0.5}):
        with pytest.raises(ValueError, match="give one of the two"):
            Goal(**wrong)
    with pytest.raises(ValueError, match="share between 0 and 1"):
        Goal(accuracy=97.5)
    with pytest.raises(ValueError, match="positive share"):
        Goal(budget=0.0)
    with pytest.raises(ValueError, match="cost_aware_network trains all levels jointly"):
        calibrate(random_table(3), "cost_aware_network", Goal(budget=0.9), joint=False)
    with pytest.raises(ValueError, match="no way to calibrate an IDK cascade"):
        calibrate(table, "guess", Goal(budget=0.9))


def test_the_dearer_of_two_equals_is_not_chosen():
    table = random_table()
    rules = (Threshold("entropy", 0.5),)
    outcome = evaluate(table, rules)
    expensive = Candidate(rules, type(outcome)(outcome.accuracy, (1.0,), (1.0, 1.0), 3.0, 1.5))
    assert Goal(accuracy=0.1).choose([expensive, Candidate(rules, outcome)]).outcome is outcome
    assert Goal(budget=2.0).choose([expensive, Candidate(rules, outcome)]).outcome is outcome


@pytest.mark.parametrize("models", [2, 3, 4])
def test_all_combinations_at_once_are_those_one_by_one(models):
    table = random_table(models, images=41)
    found = grid_candidates(table, "margin", 5)
    for candidate in found:
        expected = evaluate(table, candidate.rules)
        assert candidate.outcome.accuracy == pytest.approx(expected.accuracy)
        assert candidate.outcome.cost == pytest.approx(expected.cost)
        assert candidate.outcome.reach == pytest.approx(expected.reach)
        assert candidate.outcome.idk_rates == pytest.approx(expected.idk_rates)
    best = grid_candidates(table, "margin", 5, only_front=True)
    assert [c.outcome for c in best] == [c.outcome for c in front(found)] and len(best) < len(found)
