"""The ways to calibrate by name, and the one function that calibrates an IDK cascade with any of them."""

from collections.abc import Sequence

from .search import POINTS, Candidate, Goal, grid_candidates, stage_wise
from .table import PredictionTable
from .training import (
    LAMBDAS,
    cost_aware_candidates,
    network_candidates,
    oblivious_candidate,
    oblivious_network_candidate,
    refined,
)

GRID, COST_AWARE, OBLIVIOUS = "grid", "cost_aware", "oblivious"
# Name -> (how it is found, of which measure); measure None: a network over class probabilities.
METHODS: dict[str, tuple[str, str | None]] = {
    "confidence": (GRID, "confidence"),
    "entropy": (GRID, "entropy"),
    "margin": (GRID, "margin"),
    "cost_aware": (COST_AWARE, "entropy"),
    "cost_aware_margin": (COST_AWARE, "margin"),
    "cost_aware_network": (COST_AWARE, None),
    "oblivious": (OBLIVIOUS, "entropy"),
    "oblivious_network": (OBLIVIOUS, None),
    "box_entropy_max": (GRID, "box_entropy_max"),
    "box_entropy_mean": (GRID, "box_entropy_mean"),
    "box_entropy_sum": (GRID, "box_entropy_sum"),
    "cost_aware_boxes": (COST_AWARE, "box_entropy_sum"),
}
FOR_DETECTORS = ("box_entropy_max", "box_entropy_mean", "box_entropy_sum", "cost_aware_boxes")
FOR_CLASSIFIERS = tuple(name for name in METHODS if name not in FOR_DETECTORS)
NETWORK_LAMBDAS = LAMBDAS[::4]  # each is a training


def calibrate(
    table: PredictionTable,
    method: str,
    goal: Goal,
    *,
    joint: bool = True,
    points: int = POINTS,
    lambdas: Sequence[float] = (),
    among: Sequence[Candidate] | None = None,
) -> Candidate:
    """The IDK classifiers of an IDK cascade, chosen on held-out images.

    Args:
        method: a key of ``METHODS``.
        goal: an accuracy or a budget.
        joint: with more than two models, all levels together instead of one after the other.
        points: thresholds of a level that a grid search tries.
        lambdas: of Eq. 4.12, for the cost-aware methods; empty for ``LAMBDAS``.
        among: what ``candidates`` gave for this method, where it is at hand; networks are then not trained again.

    Raises:
        ValueError: the table is empty or not of held-out images, there is no such method, or not ``joint`` for the
            networks, which are trained jointly.
        GoalNotReachedError: nothing reaches the goal.
    """
    check_method(table, method, joint)
    kind, name = METHODS[method]
    if kind == GRID and name is not None and not joint:
        return stage_wise(table, name, goal, points)
    if kind == COST_AWARE and name is not None:
        return refined(lambda values: cost_aware_candidates(table, name, values, joint), goal, lambdas or LAMBDAS)
    if among is None and kind == GRID and name is not None:
        among = grid_candidates(table, name, points, only_front=True)
    return goal.choose(candidates(table, method, points=points, lambdas=lambdas) if among is None else among)


def check_method(table: PredictionTable, method: str, joint: bool) -> None:
    """
    Raises:
        ValueError: as ``calibrate`` says.
    """
    table.require_held_out()
    _known(method)
    if METHODS[method] == (COST_AWARE, None) and not joint and len(table.names) > 2:
        raise ValueError(f"{method} trains all levels jointly: leave it out, or search jointly (no --stage-wise).")


def candidates(
    table: PredictionTable, method: str, *, points: int = POINTS, lambdas: Sequence[float] = ()
) -> list[Candidate]:
    """All IDK cascades that ``calibrate`` chooses from when levels are searched jointly: the points of a curve."""
    kind, name = _known(method)
    if name is None:
        if kind == COST_AWARE:
            return network_candidates(table, lambdas or NETWORK_LAMBDAS)
        return [oblivious_network_candidate(table)]
    if kind == GRID:
        return grid_candidates(table, name, points)
    if kind == COST_AWARE:
        return cost_aware_candidates(table, name, lambdas or LAMBDAS)
    return [oblivious_candidate(table, name)]


def _known(method: str) -> tuple[str, str | None]:
    if method not in METHODS:
        raise ValueError(f"{method!r} is no way to calibrate an IDK cascade: use one of {', '.join(METHODS)}.")
    return METHODS[method]
