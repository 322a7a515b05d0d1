"""What an IDK cascade gives and costs, counted from a table of predictions, and the objective that it is trained by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .rules import Rule
from .table import PredictionTable


@dataclass(frozen=True)
class Outcome:
    """An IDK cascade on a set of images; shares are in [0, 1].

    Attributes:
        accuracy: of the final answers (Eq. 4.8); one minus their mean loss.
        idk_rates: (M,) of each level, the share of the images that reach it which it passes on (Eq. 4.9).
        reach: (N,) share of all images that each model sees; the first is 1.
        cost: mean cost of an image (Eq. 4.16 with hard decisions).
        relative_cost: ``cost`` as a share of the last model's: "relative computational cost" of Table 4.2.
    """

    accuracy: float
    idk_rates: tuple[float, ...]
    reach: tuple[float, ...]
    cost: float
    relative_cost: float

    def record(self) -> dict[str, Any]:
        """As plain numbers for a json or checkpoint."""
        return {
            "accuracy": self.accuracy, "idk_rates": list(self.idk_rates), "reach": list(self.reach),
            "cost": self.cost, "relative_cost": self.relative_cost,
        }  # fmt: skip


def answering_level(h: np.ndarray) -> np.ndarray:
    """(n,) number of the model that answers each image: the first whose h does not exceed 0.5, else the last (Eq. 4.7).

    Args:
        h: (M, n) of the first M models.
    """
    answers = np.concatenate([h <= 0.5, np.ones((1, h.shape[1]), dtype=bool)])
    return answers.argmax(0)


def outcome_of_levels(level: np.ndarray, losses: np.ndarray, costs: np.ndarray) -> Outcome:
    """
    Args:
        level: (n,) which model answers, n > 0.
        losses: (N, n).
        costs: (N,).
    """
    models, images = losses.shape
    reach = (level[None] >= np.arange(models)[:, None]).mean(1)
    cost = float(reach @ costs)
    passed = [float(after / before) if before else 0.0 for before, after in zip(reach, reach[1:], strict=False)]
    accuracy = 1 - float(losses[level, np.arange(images)].mean())
    return Outcome(accuracy, tuple(passed), tuple(reach.tolist()), cost, cost / float(costs[-1]))


def evaluate(table: PredictionTable, rules: Sequence[Rule]) -> Outcome:
    """The IDK cascade of ``table``'s models under M rules, one for each model but the last.

    Raises:
        ValueError: another number of rules, or no image.
    """
    if len(rules) != len(table.names) - 1:
        raise ValueError(f"{len(table.names)} models need {len(table.names) - 1} IDK classifiers, not {len(rules)}.")
    if not len(table):
        raise ValueError("there is no image to evaluate the IDK cascade on.")
    return outcome_of_levels(levels(table, rules), table.losses, table.costs)


def levels(table: PredictionTable, rules: Sequence[Rule]) -> np.ndarray:
    """(n,) number of the model that answers each image."""
    return answering_level(np.stack([rule(outputs) for rule, outputs in zip(rules, table.outputs, strict=False)]))


def oracle(table: PredictionTable) -> Outcome:
    """The oracle of section 4.4: a model passes on exactly those images that it answers wrongly.

    Losses that are no zeros and ones (detectors) are passed on where a later model has a smaller one.
    """
    later = np.minimum.accumulate(table.losses[::-1])[::-1]
    if np.isin(table.losses, (0.0, 1.0)).all():
        wrong = table.losses[:-1] == 1
    else:
        wrong = table.losses[:-1] > later[1:]
    return outcome_of_levels(answering_level(wrong.astype(float)), table.losses, table.costs)


def expected_loss(h: Tensor, losses: Tensor) -> Tensor:
    """(..., n) sum_j prod_{q<j} p_q (1 - p_j) e_j (Eq. 4.15); with two models Eq. 4.13.

    Wang 2020 sets p_N = 1, with which the last model would never pay for its errors; it is 0 here, as the last model
    always answers.

    Args:
        h: (..., M, n), p_j of the first M models.
        losses: (N, n), e_j.
    """
    return (_reach(h) * _answers(h) * losses).sum(-2)


def expected_cost(h: Tensor, costs: Tensor) -> Tensor:
    """(..., n) sum_j prod_{q<j} p_q c_j (Eq. 4.16); with two models Eq. 4.14.

    Args:
        h: (..., M, n).
        costs: (N,).
    """
    return (_reach(h) * costs[:, None]).sum(-2)


def objective(h: Tensor, losses: Tensor, costs: Tensor, weight: Tensor | float) -> Tensor:
    """(...) J of Eq. 4.12: the mean over images of loss + lambda * cost.

    Args:
        weight: lambda, (...) or a number; loss of one error against one unit of cost.
    """
    return expected_loss(h, losses).mean(-1) + weight * expected_cost(h, costs).mean(-1)


def _reach(h: Tensor) -> Tensor:
    """(..., N, n) prod_{q<j} p_q, with p_0 = 1."""
    return torch.cat([torch.ones_like(h[..., :1, :]), h.cumprod(-2)], -2)


def _answers(h: Tensor) -> Tensor:
    """(..., N, n) 1 - p_j, with p_N = 0."""
    return torch.cat([1 - h, torch.ones_like(h[..., :1, :])], -2)
