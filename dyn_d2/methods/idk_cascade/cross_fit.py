"""IDK cascades judged by images that their thresholds were not chosen on, where no held-out set is at hand.

The images are halved at random; the thresholds that one half chooses are judged by the other, and the other way round,
so that each image is judged once. That is repeated with other halves.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dyn_d2.utils.seeds import derive_seed

from .calibrators import calibrate
from .outcome import evaluate, levels
from .rules import Rule
from .search import Candidate, Goal, GoalNotReachedError
from .table import PredictionTable

DRAWS = 10_000  # of the bootstrap


@dataclass(frozen=True)
class Choice:
    """What a set of images chose.

    Attributes:
        models: numbers of the models that are asked, cheapest first; one alone is no cascade.
        rules: one for each of them but the last.
    """

    models: tuple[int, ...]
    rules: tuple[Rule, ...]

    def decide(self, table: PredictionTable) -> tuple[np.ndarray, np.ndarray]:
        """(n,) number of the model that answers each image, and what was spent on it.

        Args:
            table: of all models.
        """
        if len(self.models) == 1:
            level = np.zeros(len(table), dtype=np.int64)
        else:
            level = levels(table.subset(self.models), self.rules)
        spent = np.cumsum(table.costs[list(self.models)])
        return np.asarray(self.models)[level], spent[level]


@dataclass(frozen=True)
class CrossFit:
    """A way to choose, judged R times on n images.

    Attributes:
        correct: (R, n) one minus the loss of the cascade's answers.
        costs: (R, n), as shares of the last model's cost.
        models: (R, n) which model answered.
        choices: R pairs; the first was chosen on the first half and judged on the second.
        halves: R pairs of image numbers.
    """

    correct: np.ndarray
    costs: np.ndarray
    models: np.ndarray
    choices: list[tuple[Choice, Choice]]
    halves: list[tuple[np.ndarray, np.ndarray]]


def part_cascades(models: int) -> list[tuple[int, ...]]:
    """All rows of two models or more that end with the last one."""
    firsts = range(models - 1)
    chosen = itertools.chain.from_iterable(itertools.combinations(firsts, count) for count in range(1, models))
    return [(*part, models - 1) for part in chosen]


def choose(table: PredictionTable, method: str, goal: Goal, parts: Sequence[tuple[int, ...]]) -> Choice:
    """The best of several cascades for ``goal``; the last model alone is one of them, as soon as there is a choice.

    Args:
        method: see ``calibrators.METHODS``.
        parts: rows of models that may be taken.

    Raises:
        GoalNotReachedError: none reaches the goal.
    """
    found: dict[int, Choice] = {}
    candidates = []
    problem: GoalNotReachedError | None = None
    for part in parts:
        try:
            best = calibrate(table.subset(part), method, goal)
        except GoalNotReachedError as error:
            problem = error
            continue
        candidates.append(best)
        found[id(best)] = Choice(part, best.rules)
    if len(parts) > 1 or not candidates:
        alone = _alone(table)
        candidates.append(alone)
        found[id(alone)] = Choice((len(table.names) - 1,), ())
    try:
        return found[id(goal.choose(candidates))]
    except GoalNotReachedError as error:
        raise problem or error from None


def _alone(table: PredictionTable) -> Candidate:
    """The last model alone, as if it were a cascade that costs nothing before it."""
    last = len(table.names) - 1
    outcome = evaluate(table.subset([last, last]), [_Never()])
    return Candidate((), outcome)


class _Never:
    """Passes nothing on."""

    def __call__(self, outputs: Any) -> np.ndarray:
        return np.zeros(len(outputs))

    def state(self) -> dict[str, Any]:
        raise NotImplementedError("this rule is for counting only")


def halves(count: int, repeat: int) -> tuple[np.ndarray, np.ndarray]:
    """Image numbers of two halves, drawn at random; always the same for the same arguments."""
    order = np.random.default_rng(derive_seed("idk cross-fit", count, repeat)).permutation(count)
    return np.sort(order[: count // 2]), np.sort(order[count // 2 :])


def cross_fit(
    table: PredictionTable,
    method: str,
    goal_of: Callable[[PredictionTable], Goal],
    parts: Sequence[tuple[int, ...]],
    repeats: int,
) -> CrossFit:
    """
    Args:
        table: of labelled images that no model was trained on.
        goal_of: from the table of the choosing half to what is wanted.
        parts: rows of models that may be taken; with one of them thresholds alone are chosen.
        repeats: R.

    Raises:
        ValueError: fewer than four images.
        GoalNotReachedError: a half finds nothing that reaches the goal.
    """
    if len(table) < 4:
        raise ValueError(f"{len(table)} images cannot be halved for cross-fitting: give some hundreds.")
    n = len(table)
    correct, costs, models = np.zeros((repeats, n)), np.zeros((repeats, n)), np.zeros((repeats, n), dtype=np.int64)
    choices, divided = [], []
    for repeat in range(repeats):
        first, second = halves(n, repeat)
        pair = []
        for chosen_on, judged in ((first, second), (second, first)):
            own = table.take(chosen_on)
            choice = choose(own, method, goal_of(own), parts)
            rest = table.take(judged)
            models[repeat, judged], spent = choice.decide(rest)
            correct[repeat, judged] = 1 - rest.losses[models[repeat, judged], np.arange(len(judged))]
            costs[repeat, judged] = spent / table.costs[-1]
            pair.append(choice)
        choices.append((pair[0], pair[1]))
        divided.append((first, second))
    return CrossFit(correct, costs, models, choices, divided)


def bootstrap_interval(values: np.ndarray, draws: int = DRAWS, share: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean of ``values`` (n,) when images are drawn anew, with replacement.

    Of paired differences it is an interval of the difference. It says what other images would change, not what other
    thresholds would.
    """
    generator = np.random.default_rng(derive_seed("idk bootstrap", len(values), draws))
    drawn = generator.multinomial(len(values), np.full(len(values), 1 / len(values)), draws)
    means = drawn @ values / len(values)
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def summary(found: CrossFit, table: PredictionTable) -> dict[str, Any]:
    """Plain numbers: accuracy, its difference to the last model's with a paired interval, and the cost, means over the
    repeats; the spread over repeats beside them."""
    last = 1 - table.losses[-1]
    difference = (found.correct - last).mean(0)
    reach = [(found.models >= number).mean() for number in range(len(table.names))]
    taken = [choice.models for pair in found.choices for choice in pair]
    shares = {row: taken.count(row) / len(taken) for row in sorted(set(taken))}
    return {
        "repeats": len(found.correct),
        "accuracy": float(found.correct.mean()),
        "difference": float(difference.mean()),
        "difference_interval_95": list(bootstrap_interval(difference)),
        "difference_spread_over_repeats": float((found.correct - last).mean(1).std()),
        "first_repeat_difference": float((found.correct[0] - last).mean()),
        "first_repeat_interval_95": list(bootstrap_interval(found.correct[0] - last)),
        "relative_cost": float(found.costs.mean()),
        "relative_cost_spread_over_repeats": float(found.costs.mean(1).std()),
        "first_repeat_relative_cost": float(found.costs[0].mean()),
        "answered_by_at_least": [float(share) for share in reach],
        "taken": {" + ".join(table.names[i] for i in row): share for row, share in shares.items()},
    }
