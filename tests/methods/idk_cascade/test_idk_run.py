"""An IDK cascade that runs: who sees which images, and what it costs."""

import numpy as np
import pytest
import torch
from idk_tables import random_table

from dyn_d2.methods.idk_cascade.execution import IDKCascade, IDKCascadeModel, collect, realised, run_alone
from dyn_d2.methods.idk_cascade.outcome import evaluate
from dyn_d2.methods.idk_cascade.rules import Threshold


class _Watched(IDKCascadeModel):
    """Looks answers up by the number of an image, and notes which it was asked about."""

    def __init__(self, name, answers, cost):
        super().__init__(name, None, cost)
        self.answers, self.asked = answers, []

    def answer(self, inputs):
        rows = [int(image) for image in inputs]
        self.asked.append(rows)
        return self.answers[rows]


def _models(table) -> list[_Watched]:
    return [_Watched(*parts) for parts in zip(table.names, table.outputs, table.costs, strict=True)]


@pytest.mark.parametrize("container", [list, np.array, torch.tensor])
@pytest.mark.parametrize("models", [2, 3])
def test_only_the_undecided_reach_the_next_model(models, container):
    table = random_table(models, images=30, split="test")
    rules, watched = [Threshold("entropy", 0.6)] * (models - 1), _models(table)
    run = IDKCascade(watched, rules).run(container(range(30)), batch=8)
    asked = [[row for rows in model.asked for row in rows] for model in watched]
    assert asked[0] == list(range(30)) and len(watched[0].asked) == 4
    for number in range(1, models):
        undecided = [i for i in asked[number - 1] if rules[0](table.outputs[number - 1][[i]])[0] > 0.5]
        assert asked[number] == undecided and undecided
    assert np.allclose(np.stack(run.answers), [table.outputs[level][i] for i, level in enumerate(run.level)])


def test_realised_is_what_the_table_says():
    table = random_table(3, images=40, split="test")
    rules = [Threshold("confidence", 0.8), Threshold("entropy", 0.5)]
    run = IDKCascade(_models(table), rules).run(list(range(40)), batch=7)
    found, expected = realised(run, table), evaluate(table, rules)
    assert (found.accuracy, found.cost) == pytest.approx((expected.accuracy, expected.cost))
    assert found.reach == expected.reach and found.idk_rates == expected.idk_rates
    assert run.costs.tolist() == pytest.approx([table.costs[: level + 1].sum() for level in run.level])
    assert run.seconds.shape == (3,) and run.milliseconds > 0


def test_a_person_at_the_end():
    """Any callable will do: here one that is always right, asked where a coin-tossing network does not know."""
    labels = torch.tensor([0, 1, 1, 0])

    def network(images):
        return torch.tensor([[0.9, 0.1], [0.5, 0.5]])[images % 2]

    person = IDKCascadeModel("person", lambda images: torch.nn.functional.one_hot(labels[images], 2).float(), 1000)
    run = IDKCascade([IDKCascadeModel("network", network, 1), person], [Threshold("confidence", 0.8)])(torch.arange(4))
    assert run.level.tolist() == [0, 1, 0, 1] and run.costs.tolist() == [1, 1001, 1, 1001]
    assert [int(answer.argmax()) for answer in run.answers] == [0, 1, 0, 0]


def test_nobody_is_asked_in_vain():
    table = random_table(images=10)
    watched = _models(table)
    run = IDKCascade(watched, [Threshold("entropy", 9.0)]).run(list(range(10)), batch=5)
    assert watched[1].asked == [] and (run.level == 0).all() and run.seconds[1] == 0
    empty = IDKCascade(watched, [Threshold("entropy", 9.0)]).run([])
    assert empty.answers == [] and empty.milliseconds == 0


def test_collect_makes_a_table():
    table = random_table(images=12)
    found, milliseconds = collect(
        _models(table), list(range(12)), lambda m, answers: table.losses[table.names.index(m.name)], "held_out", 5
    )
    assert found.names == table.names and found.costs.tolist() == table.costs.tolist()
    assert np.array_equal(np.stack(found.outputs[1]), table.outputs[1]) and (milliseconds > 0).all()
    rules = [Threshold("entropy", 0.6)]
    assert evaluate(found, rules) == evaluate(table, rules)


def test_bad_input_is_named():
    table = random_table(images=4)
    models = _models(table)
    with pytest.raises(ValueError, match="2 models and 0 IDK classifiers are no IDK cascade"):
        IDKCascade(models, [])
    with pytest.raises(ValueError, match="there is no image for m1"):
        run_alone(models[0], [])
    short = IDKCascadeModel("short", lambda images: np.full((1, 2), 0.5), 1)
    with pytest.raises(ValueError, match="short gave 1 answers to 3 images"):
        IDKCascade([short, models[1]], [Threshold("entropy", 0.5)])([0, 1, 2])
    logits = IDKCascadeModel("logits", lambda images: np.full((len(images), 2), 3.0), 1)
    with pytest.raises(ValueError, match="sum to one"):
        IDKCascade([logits, models[1]], [Threshold("entropy", 0.5)])([0, 1])
