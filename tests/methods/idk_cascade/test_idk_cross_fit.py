"""Cross-fitting: who chooses and who judges, against doing it image by image."""

import numpy as np
import pytest
from idk_tables import random_table

from dyn_d2.methods.idk_cascade.calibrators import calibrate
from dyn_d2.methods.idk_cascade.cross_fit import (
    Choice,
    bootstrap_interval,
    choose,
    cross_fit,
    halves,
    part_cascades,
    summary,
)
from dyn_d2.methods.idk_cascade.execution import IDKCascade, IDKCascadeModel
from dyn_d2.methods.idk_cascade.figures import draw_entropies, draw_model_statistics, right_by_many
from dyn_d2.methods.idk_cascade.outcome import evaluate
from dyn_d2.methods.idk_cascade.rules import Threshold
from dyn_d2.methods.idk_cascade.search import Goal
from dyn_d2.methods.idk_cascade.timing import in_turns


def test_each_image_is_judged_by_thresholds_of_the_other_half():
    table = random_table(images=80)
    found = cross_fit(table, "margin", Goal.as_the_last, [(0, 1)], 2)
    for repeat in range(2):
        first, second = halves(80, repeat)
        assert sorted([*first, *second]) == list(range(80)) and len(first) == 40
        for chosen_on, judged in ((first, second), (second, first)):
            own = table.take(chosen_on)
            expected = evaluate(table.take(judged), calibrate(own, "margin", Goal.as_the_last(own)).rules)
            assert found.correct[repeat, judged].mean() == pytest.approx(expected.accuracy)
            assert found.costs[repeat, judged].mean() == pytest.approx(expected.relative_cost)
    assert not np.array_equal(halves(80, 0)[0], halves(80, 1)[0])
    told = summary(found, table)
    difference = found.correct.mean() - table.accuracies[-1]
    assert told["difference"] == pytest.approx(difference) and told["taken"] == {"m1 + m2": 1.0}
    low, high = told["difference_interval_95"]
    assert low < difference < high and told["answered_by_at_least"][0] == 1


def test_rows_of_models_and_the_one_that_is_taken():
    assert part_cascades(3) == [(0, 2), (1, 2), (0, 1, 2)]
    table = random_table(3, images=120)
    goal = Goal(budget=0.7)
    taken = choose(table, "entropy", goal, part_cascades(3))
    best = max(calibrate(table.subset(part), "entropy", goal).outcome.accuracy for part in part_cascades(3))
    level, spent = taken.decide(table)
    right = 1 - table.losses[level, np.arange(120)].mean()
    assert right == pytest.approx(best) and spent.mean() <= 0.7 * table.costs[-1] + 1e-9
    # Where asking a cheaper model first is no use, the last one answers alone.
    alone = choose(table, "entropy", Goal(accuracy=1 - float(table.losses[-1].mean())), [(0, 2), (1, 2)])
    assert spent_of(alone, table) <= table.costs[-1] + 1e-9


def spent_of(choice: Choice, table) -> float:
    return float(choice.decide(table)[1].mean())


def test_decisions_of_a_row_count_what_the_row_costs():
    table = random_table(3, images=50)
    level, spent = Choice((0, 2), (Threshold("margin", 0.5),)).decide(table)
    asked = evaluate(table.subset([0, 2]), [Threshold("margin", 0.5)])
    assert spent.mean() == pytest.approx(asked.cost) and set(level) == {0, 2}
    level, spent = Choice((2,), ()).decide(table)
    assert set(level) == {2} and (spent == table.costs[2]).all()


def test_the_bootstrap_is_as_wide_as_the_normal_distribution_says():
    values = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 400, p=[0.1, 0.8, 0.1])
    low, high = bootstrap_interval(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)
    assert bootstrap_interval(values) == (low, high)


def test_too_few_images():
    with pytest.raises(ValueError, match="3 images cannot be halved"):
        cross_fit(random_table(images=3), "entropy", Goal.as_the_last, [(0, 1)], 1)


def test_everybody_runs_every_batch_in_turns():
    order = []

    class Noted(IDKCascadeModel):
        def answer(self, inputs):
            order.append((self.name, list(inputs)))
            return np.tile([0.6, 0.4], (len(inputs), 1))

    a, b = Noted("a", None, 1.0), Noted("b", None, 2.0)
    runners = {"a": a, "cascade": [IDKCascade([a, b], [Threshold("margin", 0.0)]), b]}
    times = in_turns(runners, list(range(5)), 2, 2, [np.array([0, 2, 4]), np.array([1, 3])])
    assert set(times) == {"a", "cascade"} and all(value >= 0 for value in times["a"].values())
    batches = [[0, 2]] * 6 + [[4]] * 4 + [[1, 3]] * 4  # the first batch has a round before those that count
    assert [rows for _, rows in order] == batches
    assert [name for name, _ in order[-4:]] == ["a", "b", "b", "a"]  # of the second group b runs in the cascade's place
    order.clear()
    in_turns({"a": a, "b": b}, list(range(3)), 1, 1)
    assert [name for name, _ in order[2:]] == ["b", "a", "b", "a", "a", "b"]  # behind the round that does not count


def test_fig_4_2_and_fig_4_5(tmp_path):
    table = random_table(3, images=60)
    shares = right_by_many(table.losses)
    counts = [sum(losses[i] == 0 for losses in table.losses) for i in range(60)]
    assert shares.tolist() == [counts.count(k) / 60 for k in range(4)]
    for path in (
        draw_model_statistics(table, {"1": [3.0, 2.0, 1.0]}, tmp_path / "a.png"),
        draw_model_statistics(table, {}, tmp_path / "b.png"),
        draw_entropies({"seen": random_table(3, split="train"), "held out": table}, "entropy", tmp_path / "c.png"),
    ):
        assert path.stat().st_size > 5000
