"""What the models of an IDK cascade said about a set of images: all that thresholds are chosen from, no model is run.

Shape shorthand of this package: N models, n images, k classes, M = N - 1 IDK classifiers. Models go from the cheapest
to the most expensive, ``m^1`` to ``m^N`` of Wang 2020, chapter 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from dyn_d2.data.parts import HELD_OUT

# Soft-max in half precision is off by a thousandth; logits or scores of sigmoids are off by far more.
SUM_TOLERANCE = 2e-3


def as_probabilities(outputs: Any, name: str = "a model") -> np.ndarray:
    """(n, k) float64 probabilities, rows scaled to sum to one exactly.

    Args:
        outputs: (n, k), or n rows of k: tensors, arrays or numbers.
        name: of the model, for messages.

    Raises:
        ValueError: not a table, not finite, negative, or rows that do not sum to one.
    """
    rows = outputs if isinstance(outputs, np.ndarray | Tensor) else [_numpy(row) for row in outputs]
    try:
        table = _numpy(rows).astype(np.float64)
    except ValueError as error:
        raise ValueError(
            f"{name} gives rows of different length: class probabilities are one number a class."
        ) from error
    if table.ndim != 2 or table.shape[1] < 2:
        if not table.size:
            return np.zeros((0, 2))
        raise ValueError(f"{name} gives an array of shape {table.shape}, not one row of class probabilities an image.")
    if not np.isfinite(table).all():
        raise ValueError(f"{name} gives probabilities that are not finite for image {_first(~np.isfinite(table))}.")
    sums = table.sum(1)
    wrong = (np.abs(sums - 1) > SUM_TOLERANCE)[:, None] | (table < 0)
    if wrong.any():
        image = _first(wrong)
        raise ValueError(
            f"the probabilities of {name} do not sum to one, or are negative: those of image {image} sum to "
            f"{sums[image]:.4g}, the least is {table[image].min():.4g}. Give the output of a soft-max, not logits."
        )
    return table / sums[:, None]


def _numpy(values: Any) -> np.ndarray:
    return values.detach().float().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _first(wrong: np.ndarray) -> int:
    return int(np.flatnonzero(wrong.any(1))[0])


@dataclass(frozen=True)
class PredictionTable:
    """The answers of N models to n images.

    Attributes:
        names: of the models.
        outputs: of each model, n answers: rows of class probabilities, or detections.
        losses: (N, n) in [0, 1], what each answer would cost if it were the final one: the zero-one loss of a
            classifier (Eq. 4.13), one minus the quality of detections.
        costs: (N,) mean multiply-adds (or any other unit) of an image, positive.
        split: of the images: "held_out" for what thresholds are chosen from, or "train", "test" for reports.
    """

    names: tuple[str, ...]
    outputs: tuple[Sequence[Any] | np.ndarray, ...]
    losses: np.ndarray
    costs: np.ndarray
    split: str

    def __post_init__(self) -> None:
        models = len(self.names)
        if models < 2:
            raise ValueError(f"an IDK cascade needs at least two models, not {models}.")
        if len(self.outputs) != models or self.losses.shape[:1] != (models,) or self.costs.shape != (models,):
            raise ValueError(f"{', '.join(self.names)}: outputs, losses and costs are wanted of each of the models.")
        counts = {len(outputs) for outputs in self.outputs} | {self.losses.shape[1]}
        if len(counts) > 1:
            raise ValueError(f"the models answered different numbers of images: {', '.join(map(str, sorted(counts)))}.")
        if not (np.isfinite(self.costs).all() and (self.costs > 0).all()):
            raise ValueError(
                f"the costs of {', '.join(self.names)} are {self.costs.tolist()}: they have to be positive."
            )

    def __repr__(self) -> str:
        right = ", ".join(
            f"{name} {100 * (1 - loss):.1f} % right at {cost:.4g}"
            for name, loss, cost in zip(self.names, self.losses.mean(1), self.costs, strict=True)
        )
        return f"PredictionTable({self.losses.shape[1]} images, {self.split}: {right})"

    @classmethod
    def of_classifiers(
        cls, names: Sequence[str], probabilities: Sequence[Any], labels: Any, costs: Sequence[float], split: str
    ) -> "PredictionTable":
        """
        Args:
            probabilities: (n, k) of each model.
            labels: (n,) true classes.

        Raises:
            ValueError: no distributions, labels out of range, or counts that differ.
        """
        tables = [as_probabilities(table, name) for name, table in zip(names, probabilities, strict=True)]
        labels = np.asarray(labels, dtype=np.int64).reshape(-1)
        for name, table in zip(names, tables, strict=True):
            if len(table) != len(labels):
                raise ValueError(f"{name} answered {len(table)} images, but there are {len(labels)} labels.")
            if len(labels) and not (0 <= labels.min() and labels.max() < table.shape[1]):
                raise ValueError(
                    f"labels go from {labels.min()} to {labels.max()}, {name} has {table.shape[1]} classes."
                )
        losses = [(table.argmax(1) != labels).astype(np.float64) for table in tables]
        return cls(tuple(names), tuple(tables), np.stack(losses), np.asarray(costs, dtype=np.float64), split)

    def __len__(self) -> int:
        """n."""
        return self.losses.shape[1]

    @property
    def accuracies(self) -> np.ndarray:
        """(N,) of the models alone, in [0, 1] (Eq. 4.8); of detectors the mean quality of an image."""
        return 1 - self.losses.mean(1)

    def require_held_out(self) -> None:
        """
        Raises:
            ValueError: there is no image, or they are no held-out images.
        """
        if not len(self):
            raise ValueError(
                "the calibration set is empty: thresholds are chosen from held-out images with their labels."
            )
        if self.split != HELD_OUT:
            raise ValueError(
                f"these images are of the {self.split} split: thresholds are chosen on held-out images only (split "
                f"{HELD_OUT!r}), that neither the models were trained on nor the result is reported on."
            )

    def take(self, images: np.ndarray) -> "PredictionTable":
        """The table of some of the images, by number."""
        parts = tuple(p[images] if isinstance(p, np.ndarray) else [p[i] for i in images] for p in self.outputs)
        return PredictionTable(self.names, parts, self.losses[:, images], self.costs, self.split)

    def subset(self, models: Sequence[int]) -> "PredictionTable":
        """The table of some of the models."""
        keep = list(models)
        return PredictionTable(
            tuple(self.names[i] for i in keep), tuple(self.outputs[i] for i in keep), self.losses[keep],
            self.costs[keep], self.split,
        )  # fmt: skip
