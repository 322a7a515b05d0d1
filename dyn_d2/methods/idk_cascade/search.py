"""Thresholds by grid search, and the choice among IDK cascades at an accuracy or budget (Eq. 4.10, 4.11)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .measures import SMALL_IS_UNCERTAIN, measure
from .outcome import Outcome, answering_level, outcome_of_levels
from .rules import Rule, Threshold
from .table import PredictionTable

POINTS = 100  # thresholds of a level that are tried (section 4.4)
COMBINATIONS = 20_000  # at most, when the levels of a deep IDK cascade are searched together


class GoalNotReachedError(ValueError):
    """No IDK cascade that was tried has the accuracy, or keeps the budget; says what the best one reaches."""


@dataclass(frozen=True)
class Candidate:
    """An IDK cascade that may be chosen: its M rules, and what they give on the images that they were made on.

    Attributes:
        settings: what led to it, e.g. {"lambda": 0.1}.
    """

    rules: tuple[Rule, ...]
    outcome: Outcome
    settings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Goal:
    """The cheapest IDK cascade of at least ``accuracy``, or the most accurate of at most ``budget``; one of the two.

    Attributes:
        accuracy: in [0, 1].
        budget: mean cost of an image as a share of the last model's.
    """

    accuracy: float | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        if (self.accuracy is None) == (self.budget is None):
            raise ValueError("an IDK cascade is calibrated for an accuracy or for a budget: give one of the two.")
        if self.accuracy is not None and not 0 <= self.accuracy <= 1:
            raise ValueError(f"an accuracy of {self.accuracy:g} cannot be reached: give a share between 0 and 1.")
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"a budget of {self.budget:g} of the last model's cost is none: give a positive share.")

    @classmethod
    def as_the_last(cls, table: PredictionTable, epsilon: float = 0.0) -> "Goal":
        """(1 - epsilon) times the accuracy of the last model (Eq. 4.11)."""
        return cls(accuracy=(1 - epsilon) * float(table.accuracies[-1]))

    def choose(self, candidates: Sequence[Candidate]) -> Candidate:
        """
        Raises:
            GoalNotReachedError: no candidate reaches the goal.
        """
        outcomes = [candidate.outcome for candidate in candidates]
        if self.accuracy is not None:
            reached = [c for c in candidates if c.outcome.accuracy >= self.accuracy - 1e-12]
            if not reached:
                best = max(outcome.accuracy for outcome in outcomes)
                raise GoalNotReachedError(
                    f"no threshold reaches an accuracy of {100 * self.accuracy:.2f} %: the best of {len(outcomes)} "
                    f"IDK cascades has {100 * best:.2f} %. Ask for at most that, or add a more accurate model."
                )
            return min(reached, key=lambda c: (c.outcome.cost, -c.outcome.accuracy))
        assert self.budget is not None  # one of the two is given
        reached = [c for c in candidates if c.outcome.relative_cost <= self.budget + 1e-12]
        if not reached:
            least = min(outcome.relative_cost for outcome in outcomes)
            raise GoalNotReachedError(
                f"no threshold reaches a budget of {self.budget:.3g} of the last model's cost: the cheapest of "
                f"{len(outcomes)} IDK cascades takes {least:.3g}. Ask for at least that, or begin with a cheaper model."
            )
        return max(reached, key=lambda c: (c.outcome.accuracy, -c.outcome.cost))


def alphas(values: np.ndarray, name: str, points: int = POINTS) -> np.ndarray:
    """Thresholds to try: ``points`` quantiles of the values, and one with which every image is passed on.

    Quantiles, not equal steps: the entropies of a good classifier crowd near 0.

    Args:
        values: (n,) of the measure ``name``, n > 0.
    """
    # Values themselves, not points between them: then the first (last, for a confidence) passes nothing on.
    found = np.quantile(values, np.linspace(0, 1, points), method="nearest")
    beyond = np.nextafter(values.max(), np.inf) if name in SMALL_IS_UNCERTAIN else np.nextafter(values.min(), -np.inf)
    return np.unique(np.append(found, beyond))


def grid_candidates(
    table: PredictionTable, name: str, points: int = POINTS, only_front: bool = False
) -> list[Candidate]:
    """An IDK cascade for every threshold of the measure ``name``; with more than two models, for every combination of
    thresholds of all levels, of which fewer are tried so that there are at most ``COMBINATIONS``.

    Args:
        only_front: leave out those that another one beats, see ``front``; the choice for a goal is the same.
    """
    levels = len(table.names) - 1
    each = max(2, min(points, int(COMBINATIONS ** (1 / levels) + 1e-9) - 1))
    options = []
    for outputs in table.outputs[:-1]:
        values = measure(name, outputs)
        rules = [Threshold(name, float(alpha)) for alpha in alphas(values, name, each)]
        options.append([(rule, rule.of_values(values)) for rule in rules])
    losses, reach = _all_combinations([np.stack([h for _, h in option]) for option in options], table.losses)
    # One by one, as elsewhere: a product of matrices rounds otherwise, and equal costs would no longer be equal.
    costs = np.array([shares @ table.costs for shares in np.ascontiguousarray(reach.T)])
    wanted = _front_of(1 - losses, costs) if only_front else range(len(losses))
    sizes = [len(option) for option in options]
    found = []
    for number in wanted:
        chosen = [option[place] for option, place in zip(options, np.unravel_index(number, sizes), strict=True)]
        shares = reach[:, number]
        cost = float(costs[number])
        passed = tuple(float(b / a) if a else 0.0 for a, b in zip(shares, shares[1:], strict=False))
        outcome = Outcome(
            1 - float(losses[number]), passed, tuple(shares.tolist()), cost, cost / float(table.costs[-1])
        )
        found.append(Candidate(tuple(rule for rule, _ in chosen), outcome))
    return found


def _front_of(accuracies: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Numbers of those that no other beats in both, from the cheapest on."""
    order = np.lexsort((-accuracies, costs))
    best = np.maximum.accumulate(accuracies[order])
    better = np.concatenate([[True], best[1:] > best[:-1]])
    return order[better]


def _all_combinations(decisions: Sequence[np.ndarray], losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss (C,) and reach (N, C) of all combinations of decisions, in the order of ``itertools.product``.

    Two products of matrices: one by one, the 20,000 combinations of three models took longer than the models.

    Args:
        decisions: of each level (options, n), 1 where an image is passed on.
        losses: (N, n).
    """
    images = losses.shape[1]
    later, passing = losses[-1:], [np.ones((1, images))]  # of the levels after the first, all combinations
    for level in reversed(range(1, len(decisions))):
        h = decisions[level][:, None]
        later = ((1 - h) * losses[level] + h * later).reshape(-1, images)
        passing = [np.ones((1, images)), *((h * part).reshape(-1, images) for part in passing)]
    first = decisions[0]
    loss = ((1 - first) @ losses[0])[:, None] + first @ later.T
    reach = [np.ones(loss.size)]
    for part in passing:  # of levels that are no further than this one the rest of the combinations does not matter
        share = first @ part.T
        reach.append(np.repeat(share, len(later) // len(part), axis=1).reshape(-1))
    return loss.reshape(-1) / images, np.stack([reach[0], *(share / images for share in reach[1:])])


def stage_wise(table: PredictionTable, name: str, goal: Goal, points: int = POINTS) -> Candidate:
    """One threshold after the other, from the least accurate model on ("Beyond Two Element Cascades").

    The threshold of a level is chosen for the IDK cascade that passes its images straight to the last model; the next
    model then comes in between. Wang 2020 does not say which accuracy a stage has to keep; here it is the goal's at
    every stage, so that a later stage can always keep what the one before reached.

    Raises:
        GoalNotReachedError: from ``Goal.choose``.
    """
    rules: list[Rule] = []
    passed: list[np.ndarray] = []
    for level, outputs in enumerate(table.outputs[:-1]):
        part = table.subset([*range(level + 1), len(table.names) - 1])
        values = measure(name, outputs)
        tried: dict[Rule, np.ndarray] = {rule: rule.of_values(values) for alpha in alphas(values, name, points)
                 for rule in [Threshold(name, float(alpha))]}  # fmt: skip
        found = []
        for rule, h in tried.items():
            answers = answering_level(np.stack([*passed, h]))
            found.append(Candidate((*rules, rule), outcome_of_levels(answers, part.losses, part.costs)))
        best = goal.choose(found)
        rules = list(best.rules)
        passed.append(tried[rules[-1]])
    return best


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other beats in both accuracy and cost, from the cheapest on."""
    best, found = -np.inf, []
    for candidate in sorted(candidates, key=lambda c: (c.outcome.cost, -c.outcome.accuracy)):
        if candidate.outcome.accuracy > best:
            best = candidate.outcome.accuracy
            found.append(candidate)
    return found
