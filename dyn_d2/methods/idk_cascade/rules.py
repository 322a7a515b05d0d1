"""IDK classifiers: from the answer of a model to the decision whether the next one is asked (Eq. 4.2).

A rule gives h in [0, 1] for each answer; above 0.5 it means "I don't know" (Eq. 4.7). ``state`` and ``rule_from_state``
carry it through a checkpoint: numbers, text and tensors only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .measures import SMALL_IS_UNCERTAIN, measure
from .table import as_probabilities

PUBLISHED_WIDTHS = (1024, 1024, 512, 512, 128, 64)  # hidden layers of the network of section 4.4; the output is the 7th


class Rule(Protocol):
    """Anything that gives (n,) values of h in [0, 1] for n answers of a model."""

    def __call__(self, outputs: Any) -> np.ndarray: ...

    def state(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Threshold:
    """h = 1[max_j m(x)_j < alpha] for the measure "confidence" (Eq. 4.3); 1[u > alpha] for all others (Eq. 4.4)."""

    measure: str
    alpha: float

    def __call__(self, outputs: Any) -> np.ndarray:
        return self.of_values(measure(self.measure, outputs))

    def of_values(self, values: np.ndarray) -> np.ndarray:
        """The same from values of the measure."""
        below = self.measure in SMALL_IS_UNCERTAIN
        return (values < self.alpha if below else values > self.alpha).astype(np.float64)

    def state(self) -> dict[str, Any]:
        return {"kind": "threshold", "measure": self.measure, "alpha": float(self.alpha)}


@dataclass(frozen=True)
class Logistic:
    """h = sigmoid(alpha_1 u + alpha_0) (Eq. 4.5, f a measure)."""

    measure: str
    slope: float
    intercept: float

    def __call__(self, outputs: Any) -> np.ndarray:
        return self.of_values(measure(self.measure, outputs))

    def of_values(self, values: np.ndarray) -> np.ndarray:
        """The same from values of the measure."""
        score = np.clip(self.slope * values + self.intercept, -500, 500)  # exp overflows beyond 709
        return 1 / (1 + np.exp(-score))

    def state(self) -> dict[str, Any]:
        return {
            "kind": "logistic", "measure": self.measure, "slope": float(self.slope), "intercept": float(self.intercept),
        }  # fmt: skip


class Network(nn.Module):
    """h = sigmoid(NN(m(x))) (Eq. 4.5, f a network): fully connected, batch norm and ReLU after each hidden layer."""

    def __init__(self, classes: int, widths: Sequence[int] = PUBLISHED_WIDTHS) -> None:
        """
        Args:
            classes: k, the width of the input.
            widths: of the hidden layers.
        """
        super().__init__()
        self.classes, self.widths = classes, tuple(widths)
        layers: list[nn.Module] = []
        for before, width in zip((classes, *widths), widths, strict=False):
            layers += [nn.Linear(before, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear((classes, *widths)[-1], 1))

    def forward(self, probabilities: Tensor) -> Tensor:
        """(n,) scores before the sigmoid for (n, k) probabilities."""
        return self.layers(probabilities).squeeze(1)


class NetworkRule:
    """The rule of a trained :class:`Network`."""

    def __init__(self, network: Network) -> None:
        self.network = network.eval()

    def __call__(self, outputs: Any) -> np.ndarray:
        table = torch.from_numpy(as_probabilities(outputs)).float()
        if table.shape[1] != self.network.classes:
            raise ValueError(f"this IDK classifier knows {self.network.classes} classes, not {table.shape[1]}.")
        with torch.no_grad():
            return torch.sigmoid(self.network(table)).double().numpy()

    def state(self) -> dict[str, Any]:
        weights = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        widths = list(self.network.widths)
        return {"kind": "network", "classes": self.network.classes, "widths": widths, "weights": weights}


def _number(value: Any) -> float:
    if math.isnan(float(value)):
        raise ValueError("a threshold or weight is NaN")
    return float(value)


def rule_from_state(state: dict[str, Any]) -> Rule:
    """
    Raises:
        ValueError: it is not what ``state`` of a rule gives.
    """
    try:
        if state["kind"] == "threshold":
            return Threshold(str(state["measure"]), _number(state["alpha"]))
        if state["kind"] == "logistic":
            return Logistic(str(state["measure"]), _number(state["slope"]), _number(state["intercept"]))
        if state["kind"] == "network":
            network = Network(int(state["classes"]), [int(width) for width in state["widths"]])
            network.load_state_dict(state["weights"])
            if not all(torch.isfinite(value).all() for value in network.state_dict().values()):
                raise ValueError("its weights have NaN or infinity")
            return NetworkRule(network)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"a stored IDK classifier cannot be read ({error}): calibrate it again.") from error
    raise ValueError(f"a stored IDK classifier is of the unknown kind {state['kind']!r}: calibrate it again.")
