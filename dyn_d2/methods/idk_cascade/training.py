"""IDK classifiers that learn: by the cost-aware objective (Eq. 4.12 to 4.16), or, as baselines, without the cost.

Losses count errors, costs are divided by the last model's: ``weight``, the lambda of Eq. 4.12, is the share of errors
that one run of the last model is worth. The 0.04 of Wang 2020 with costs in G multiply-adds is 0.04 times the last
model's G here (0.45 for its ResNet-152).
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dyn_d2.utils.seeds import derive_seed

from .measures import SMALL_IS_UNCERTAIN, measure
from .outcome import (
    Outcome,
    answering_level,
    evaluate,
    expected_cost,
    expected_loss,
    levels,
    objective,
    outcome_of_levels,
)
from .rules import PUBLISHED_WIDTHS, Logistic, Network, NetworkRule
from .search import Candidate, Goal
from .table import PredictionTable

LAMBDAS = tuple(float(value) for value in np.geomspace(1e-3, 1.0, 20))
# Where the search for a sigmoid begins, as quantiles of the measure: J is not convex in the intercept.
_STARTS = (0.5, 0.75, 0.9)
_BATCH = 512


def cost_aware_candidates(
    table: PredictionTable, name: str, lambdas: Sequence[float] = LAMBDAS, joint: bool = True, steps: int = 300
) -> list[Candidate]:
    """For each lambda the sigmoids of a measure (Eq. 4.5) that minimise J (Eq. 4.12).

    Args:
        name: the measure, "entropy" in Wang 2020.
        joint: all levels of a deep IDK cascade together, by Eq. 4.15 and 4.16; False: one after the other, each as if
            what it passes on went to the last model, and on those images only that reach it.
        steps: of Adam on batches of 512; Wang 2020 has "stochastic gradient descent" without a rate.
    """
    values = np.stack([measure(name, outputs) for outputs in table.outputs[:-1]])
    sign = -1 if name in SMALL_IS_UNCERTAIN else 1  # the search begins with sigmoids that rise
    weights, costs = np.asarray(lambdas, dtype=np.float64), table.costs / table.costs[-1]
    if joint:
        slopes, intercepts = fit_logistic(sign * values, table.losses, costs, weights, steps=steps)
        slopes = sign * slopes
    else:
        slopes, intercepts = _fit_one_by_one(name, values, table.losses, costs, weights, steps)
    found = []
    for row, weight in enumerate(weights):
        rules = tuple(Logistic(name, *pair) for pair in zip(slopes[row], intercepts[row], strict=True))
        # From the values at hand: the rules would take the measure of all outputs again for every lambda.
        h = np.stack([rule.of_values(own) for rule, own in zip(rules, values, strict=True)])
        outcome = outcome_of_levels(answering_level(h), table.losses, table.costs)
        found.append(Candidate(rules, outcome, {"lambda": float(weight)}))
    return found


def _fit_one_by_one(name: str, values, losses, costs, weights, steps: int) -> tuple[np.ndarray, np.ndarray]:
    sign = -1 if name in SMALL_IS_UNCERTAIN else 1
    reaching = np.ones((len(weights), values.shape[1]))
    slopes, intercepts = [], []
    for level, own in enumerate(values):
        pair = [level, len(losses) - 1]
        slope, intercept = fit_logistic(sign * own[None], losses[pair], costs[pair], weights, reaching, steps)
        slopes.append(sign * slope[:, 0])
        intercepts.append(intercept[:, 0])
        h = [Logistic(name, a, b).of_values(own) for a, b in zip(slopes[-1], intercepts[-1], strict=True)]
        reaching = reaching * (np.stack(h) > 0.5)
    return np.stack(slopes, 1), np.stack(intercepts, 1)


def fit_logistic(
    values: np.ndarray,
    losses: np.ndarray,
    costs: np.ndarray,
    weights: np.ndarray,
    reaching: np.ndarray | None = None,
    steps: int = 300,
) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and intercepts, (L, M) each, that minimise J for each of L values of lambda.

    From several starts, of which the one with the least J under hard decisions is kept.

    Args:
        values: (M, n) of the measure.
        losses: (N, n).
        costs: (N,).
        weights: (L,) values of lambda.
        reaching: (L, n), 1 for the images that count, 0 for the others; None: all count.
    """
    mean, std = values.mean(1, keepdims=True), values.std(1, keepdims=True) + 1e-12
    counting = np.ones((len(weights), values.shape[1])) if reaching is None else reaching
    x, e, c, lam, count = (np.asarray(part, dtype=np.float32)
                           for part in ((values - mean) / std, losses, costs, weights, counting))  # fmt: skip
    begin = np.quantile(x, _STARTS, axis=1)  # S x M
    line = np.empty((2, len(_STARTS), len(lam), len(x), 1), dtype=np.float32)  # slopes, intercepts
    line[0], line[1] = 4.0, -4.0 * begin[:, None, :, None]
    shared = torch.from_numpy(line)  # its memory: what the optimizer changes is what is computed with
    optimizer = torch.optim.Adam([shared], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(derive_seed("idk logistic", values.shape[1]))
    for _ in range(steps):
        rows = torch.randint(values.shape[1], (min(_BATCH, values.shape[1]),), generator=generator).numpy()
        h = _sigmoid(line[0] * x[:, rows] + line[1])
        slope = gradient(h, e[:, rows], c, lam[:, None]) * h * (1 - h) * count[:, None, rows]
        means = (slope * x[:, rows]).mean(-1, keepdims=True), slope.mean(-1, keepdims=True)
        shared.grad = torch.from_numpy(np.stack(means).astype(np.float32))
        optimizer.step()
        schedule.step()
    best = np.stack([_hard(line[0, i] * x + line[1, i] > 0, e, c, lam, count) for i in range(len(begin))])
    a, b = line[..., 0][:, best.argmin(0), np.arange(len(lam))].astype(np.float64)
    return a / std[:, 0], b - a * mean[:, 0] / std[:, 0]


def gradient(h: np.ndarray, losses: np.ndarray, costs: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(..., M, n) derivative with respect to each h of an image's part of J (Eq. 4.12, with 4.15 and 4.16).

    J is linear in each h: passing an image on trades this model's loss for what is to come after it. Written out it
    takes a tenth of the time of automatic differentiation, whose tensors are too small here.

    Args:
        h: (..., M, n).
        losses: (N, n).
        costs: (N,).
        weight: lambda, of a shape that fits (..., n).
    """
    found = np.empty_like(h)
    to_come = losses[-1] + weight * costs[-1]  # of an image that reaches the last model
    for level in reversed(range(h.shape[-2])):
        found[..., level, :] = to_come - losses[level]
        p = h[..., level, :]
        to_come = weight * costs[level] + (1 - p) * losses[level] + p * to_come
    reach = np.cumprod(h[..., :-1, :], -2)
    found[..., 1:, :] *= reach
    return found


def _hard(h: np.ndarray, losses: np.ndarray, costs: np.ndarray, weight: np.ndarray, count: np.ndarray) -> np.ndarray:
    """(L,) J under decisions h (L, M, n) of zeros and ones."""
    decided = torch.from_numpy(h.astype(np.float32))
    each = expected_loss(decided, torch.from_numpy(losses)).numpy()
    each = each + weight[:, None] * expected_cost(decided, torch.from_numpy(costs)).numpy()
    return (each * count).mean(-1)


def _sigmoid(scores: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(scores, -80, 80)))  # float32 overflows beyond 88


def refined(make: Callable[[Sequence[float]], list[Candidate]], goal: Goal, lambdas: Sequence[float]) -> Candidate:
    """The best of ``make(lambdas)``, then of a second sweep between the neighbours of its lambda.

    Raises:
        GoalNotReachedError: from ``Goal.choose``.
    """
    found = make(lambdas)
    best = goal.choose(found)
    ordered = sorted(lambdas)
    place = ordered.index(min(ordered, key=lambda value: abs(value - best.settings["lambda"])))
    low, high = ordered[max(place - 1, 0)], ordered[min(place + 1, len(ordered) - 1)]
    if low >= high:
        return best
    return goal.choose([*found, *make(np.geomspace(max(low, 1e-9), high, len(ordered)).tolist())])


def network_candidates(
    table: PredictionTable, lambdas: Sequence[float], widths: Sequence[int] = PUBLISHED_WIDTHS, epochs: int = 20
) -> list[Candidate]:
    """For each lambda the networks over class probabilities (Eq. 4.5, f = NN) that minimise J, all levels jointly, with
    the outcome of ``_cross_fitted``."""
    costs = torch.from_numpy(table.costs / table.costs[-1]).float()
    found = []
    for weight in lambdas:
        rules, outcome = _cross_fitted(table, partial(_objective_of_scores, costs, weight), widths, epochs)
        found.append(Candidate(rules, outcome, {"lambda": float(weight)}))
    return found


def _objective_of_scores(costs: Tensor, weight: float, scores: Tensor, losses: Tensor) -> Tensor:
    return objective(scores.sigmoid(), losses, costs, weight)


def oblivious_candidate(table: PredictionTable, name: str, steps: int = 400) -> Candidate:
    """The cost-oblivious baseline of section 4.4: a sigmoid of the measure that predicts, by cross entropy, whether the
    model is wrong. There is nothing to choose: one IDK cascade."""
    rules = []
    for outputs, wrong in zip(table.outputs[:-1], table.losses, strict=False):
        values = measure(name, outputs)
        mean, std = values.mean(), values.std() + 1e-12
        x, label = torch.from_numpy((values - mean) / std), torch.from_numpy(wrong)
        line = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([line], lr=0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(line[0] * x + line[1], label).backward()
            optimizer.step()
        a, b = line.detach().tolist()
        rules.append(Logistic(name, a / std, b - a * mean / std))
    return Candidate(tuple(rules), evaluate(table, rules))


def oblivious_network_candidate(
    table: PredictionTable, widths: Sequence[int] = PUBLISHED_WIDTHS, epochs: int = 20
) -> Candidate:
    """The same with a network over class probabilities."""

    def wrong(scores: Tensor, e: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(scores, e[:-1])

    return Candidate(*_cross_fitted(table, wrong, widths, epochs))


def _cross_fitted(
    table: PredictionTable, loss: Callable[[Tensor, Tensor], Tensor], widths: Sequence[int], epochs: int
) -> tuple[tuple[NetworkRule, ...], Outcome]:
    """Networks that were fitted on all images, and what to expect of such networks on others: each half of the images
    is judged by networks that were fitted on the other half. On their own images they seem better than they are."""
    order = np.random.default_rng(derive_seed("idk halves", len(table))).permutation(len(table))
    level = np.empty(len(table), dtype=np.int64)
    for judged, rest in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        level[judged] = levels(table.take(judged), _fit_networks(table.take(rest), loss, widths, epochs))
    return _fit_networks(table, loss, widths, epochs), outcome_of_levels(level, table.losses, table.costs)


def _fit_networks(
    table: PredictionTable,
    loss: Callable[[Tensor, Tensor], Tensor],
    widths: Sequence[int],
    epochs: int,
    batch: int = 256,
) -> tuple[NetworkRule, ...]:
    """M networks by stochastic gradient descent with momentum (section 4.4; rate, batch and epochs are ours).

    Args:
        loss: of (M, n) scores and (N, n) losses.
    """
    inputs = [torch.from_numpy(np.asarray(outputs)).float() for outputs in table.outputs[:-1]]
    errors = torch.from_numpy(table.losses).float()
    with torch.random.fork_rng([]):
        torch.manual_seed(derive_seed("idk network", len(table), *widths))
        networks = [Network(part.shape[1], widths).train() for part in inputs]
        parameters = [p for network in networks for p in network.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=1e-4)
        for _ in range(epochs):
            # A batch of a single image has no batch statistics.
            for rows in (rows for rows in torch.randperm(len(table)).split(batch) if len(rows) > 1):
                scores = torch.stack([net(part[rows]) for net, part in zip(networks, inputs, strict=True)])
                optimizer.zero_grad()
                loss(scores, errors[:, rows]).backward()
                optimizer.step()
    return tuple(NetworkRule(network) for network in networks)
