"""Each equation of Wang 2020, chapter 4, against the slow way to say it."""

import math

import numpy as np
import pytest
import torch
from idk_tables import random_table, slow_outcome, softmax

from dyn_d2.methods.idk_cascade.measures import box_entropies, confidence, entropy, measure
from dyn_d2.methods.idk_cascade.outcome import (
    answering_level,
    evaluate,
    expected_cost,
    expected_loss,
    objective,
    oracle,
)
from dyn_d2.methods.idk_cascade.rules import Logistic, Threshold
from dyn_d2.methods.idk_cascade.table import PredictionTable


@pytest.fixture
def probabilities() -> np.ndarray:
    return softmax(np.random.default_rng(1).normal(0, 2, (20, 5)))


def test_confidence_is_the_greatest_probability(probabilities):
    assert confidence(probabilities).tolist() == pytest.approx([max(row) for row in probabilities.tolist()])


def test_entropy_of_eq_4_6(probabilities):
    slow = [-sum(p * math.log(p) for p in row) for row in probabilities.tolist()]
    assert entropy(probabilities).tolist() == pytest.approx(slow)
    assert entropy([[1.0, 0.0, 0.0]])[0] == 0  # 0 log 0 = 0
    assert entropy(np.full((1, 7), 1 / 7))[0] == pytest.approx(math.log(7))
    half = torch.tensor([[0.9995, 0.0005]], dtype=torch.float16)
    assert entropy(half)[0] > 0  # computed in double precision


def test_box_entropy_is_greatest_at_one_half():
    assert box_entropies([0.0, 1.0]).tolist() == [0, 0] and box_entropies([0.5])[0] == pytest.approx(math.log(2))
    assert box_entropies([0.2]) == pytest.approx(entropy([[0.2, 0.8]]))
    scores = [torch.tensor([0.5, 0.9]), torch.zeros(0)]
    assert measure("box_entropy_sum", scores) == pytest.approx([box_entropies([0.5, 0.9]).sum(), math.log(2)])
    assert measure("box_entropy_max", scores)[0] == pytest.approx(math.log(2))
    assert measure("box_entropy_mean", scores)[0] == pytest.approx(box_entropies([0.5, 0.9]).mean())


def test_thresholds_of_eq_4_3_and_4_4(probabilities):
    h = Threshold("confidence", 0.6)(probabilities)
    assert h.tolist() == [1.0 if max(row) < 0.6 else 0.0 for row in probabilities.tolist()]
    h = Threshold("entropy", 0.8)(probabilities)
    assert h.tolist() == [1.0 if value > 0.8 else 0.0 for value in entropy(probabilities)]


def test_sigmoid_of_eq_4_5(probabilities):
    h = Logistic("entropy", 3.0, -2.0)(probabilities)
    assert h.tolist() == pytest.approx([1 / (1 + math.exp(2 - 3 * value)) for value in entropy(probabilities)])
    assert np.isfinite(Logistic("entropy", 1e6, -1e3)(probabilities)).all()


@pytest.mark.parametrize("models", [2, 3, 4])
def test_outcome_counts_image_by_image(models):
    table = random_table(models)
    rules = [Threshold("entropy", 0.7), Threshold("confidence", 0.8), Logistic("entropy", 4.0, -3.0)][: models - 1]
    found = evaluate(table, rules)
    h = [rule(outputs) for rule, outputs in zip(rules, table.outputs, strict=False)]
    accuracy, cost, reach = slow_outcome(table, h)
    assert found.accuracy == pytest.approx(accuracy) and found.cost == pytest.approx(cost)
    assert found.reach == pytest.approx(reach)
    assert found.relative_cost == pytest.approx(cost / table.costs[-1])
    rates = [after / before for before, after in zip(reach, reach[1:], strict=False)]
    assert found.idk_rates == pytest.approx(rates)  # Eq. 4.9 at each level


def test_an_image_of_one_half_is_answered():
    """Eq. 4.7: only h > 0.5 is "I don't know"."""
    assert answering_level(np.array([[0.5, 0.51]])).tolist() == [0, 1]


@pytest.mark.parametrize("models", [2, 3, 4])
def test_expected_loss_and_cost_of_eq_4_15_and_4_16(models):
    rng = np.random.default_rng(models)
    h, e, c = rng.random((models - 1, 6)), rng.integers(0, 2, (models, 6)).astype(float), rng.random(models)
    loss, cost = (f(torch.from_numpy(h), torch.from_numpy(x)) for f, x in ((expected_loss, e), (expected_cost, c)))
    for image in range(6):
        p = [1.0, *h[:, image], 0.0]  # p_0 ... p_N; the p_N = 1 of Wang 2020 would leave the last model out
        reach = [math.prod(p[:j]) for j in range(1, models + 1)]
        assert float(loss[image]) == pytest.approx(
            sum(reach[j - 1] * (1 - p[j]) * e[j - 1, image] for j in range(1, models + 1))
        )
        assert float(cost[image]) == pytest.approx(sum(reach[j - 1] * c[j - 1] for j in range(1, models + 1)))
    whole = objective(torch.from_numpy(h), torch.from_numpy(e), torch.from_numpy(c), 0.3)
    assert float(whole) == pytest.approx(float(loss.mean() + 0.3 * cost.mean()))  # Eq. 4.12


def test_two_models_are_eq_4_13_and_4_14():
    h, fast, accurate = torch.tensor([[0.3, 0.8]]), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    loss = expected_loss(h, torch.stack([fast, accurate]))
    assert torch.allclose(loss, (1 - h[0]) * fast + h[0] * accurate)
    assert torch.allclose(expected_cost(h, torch.tensor([2.0, 5.0])), 2 + h[0] * 5)


def test_hard_decisions_give_the_counted_numbers():
    table = random_table(3)
    rules = [Threshold("entropy", 0.7), Threshold("entropy", 0.4)]
    h = torch.from_numpy(np.stack([r(o) for r, o in zip(rules, table.outputs, strict=False)]))
    found = evaluate(table, rules)
    assert 1 - float(expected_loss(h, torch.from_numpy(table.losses)).mean()) == pytest.approx(found.accuracy)
    assert float(expected_cost(h, torch.from_numpy(table.costs)).mean()) == pytest.approx(found.cost)


def test_oracle_passes_on_what_is_wrong():
    table = random_table(3)
    found = oracle(table)
    accuracy, cost, _ = slow_outcome(table, list(table.losses[:-1]))
    assert (found.accuracy, found.cost) == pytest.approx((accuracy, cost))
    assert found.accuracy == pytest.approx(1 - table.losses.min(0).mean())  # right where any model is


def test_oracle_of_graded_losses_takes_the_best_model():
    table = PredictionTable(
        ("a", "b"), ([0, 0], [0, 0]), np.array([[0.2, 0.5], [0.4, 0.1]]), np.array([1.0, 3]), "test"
    )
    assert oracle(table).accuracy == pytest.approx(1 - 0.15) and oracle(table).reach == (1.0, 0.5)


def test_table_4_2_adds_up():
    """IDK rate -> FLOPs and relative cost, all rows: 1.7 + IDK rate * 3.7, the costs of its two models."""
    rows = [
        (67.5, 4.198, 1.135), (51.7, 3.613, 0.977), (48.9, 3.509, 0.949), (40.1, 3.184, 0.861), (40.0, 3.179, 0.859),
        (36.5, 3.051, 0.824), (33.7, 2.947, 0.796), (32.8, 2.915, 0.788), (29.9, 2.806, 0.759), (30.6, 2.832, 0.766),
        (30.5, 2.827, 0.764),
    ]  # fmt: skip
    for rate, flops, relative in rows:
        cost = float(expected_cost(torch.tensor([[rate / 100]]), torch.tensor([1.7, 3.7])))
        assert cost == pytest.approx(flops, abs=2e-3) and cost / 3.7 == pytest.approx(relative, abs=6e-4)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([[0.5, 0.6]], "do not sum to one"),
        ([[2.0, -1.0]], "negative"),
        ([[0.5, float("nan")]], "not finite"),
        ([0.5, 0.5], "not one row of class probabilities"),
        ([[0.5, 0.5], [1.0]], "different length"),
    ],
)
def test_what_is_no_distribution_is_named(outputs, message):
    with pytest.raises(ValueError, match=message):
        PredictionTable.of_classifiers(["fast", "slow"], [outputs, outputs], [0] * len(outputs), [1, 2], "held_out")


def test_tables_that_do_not_fit_are_named():
    good = np.full((3, 2), 0.5)
    with pytest.raises(ValueError, match="2 images, but there are 3 labels"):
        PredictionTable.of_classifiers(["a", "b"], [good, good[:2]], [0, 1, 0], [1, 2], "held_out")
    with pytest.raises(ValueError, match="labels go from 0 to 5, a has 2 classes"):
        PredictionTable.of_classifiers(["a", "b"], [good, good], [0, 1, 5], [1, 2], "held_out")
    with pytest.raises(ValueError, match="have to be positive"):
        PredictionTable.of_classifiers(["a", "b"], [good, good], [0, 1, 0], [0, 2], "held_out")
    with pytest.raises(ValueError, match="at least two models"):
        PredictionTable.of_classifiers(["a"], [good], [0, 1, 0], [1], "held_out")
    with pytest.raises(ValueError, match="no measure of uncertainty"):
        measure("spread", good)
    with pytest.raises(ValueError, match="they are probabilities"):
        measure("box_entropy_max", [np.array([1.5])])
    with pytest.raises(ValueError, match="need 1 IDK classifiers, not 2"):
        evaluate(random_table(), [Threshold("entropy", 0.1)] * 2)
