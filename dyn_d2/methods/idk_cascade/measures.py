"""Uncertainty of an answer, as one number an image: what IDK classifiers compare with a threshold."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .table import as_probabilities


def confidence(outputs: Any) -> np.ndarray:
    """(n,) probability of the predicted class, max_j m(x)_j of Eq. 4.3; small where the model is uncertain."""
    return as_probabilities(outputs).max(1)


def margin(outputs: Any) -> np.ndarray:
    """(n,) by how much the most probable class leads the second; small where the model is uncertain.

    Not in Wang et al.: of a thousand classes an entropy counts a tail that says little about which of two it is."""
    best = np.sort(as_probabilities(outputs), 1)
    return best[:, -1] - best[:, -2]


def entropy(outputs: Any) -> np.ndarray:
    """(n,) H = -sum_j m(x)_j log m(x)_j in nats (Eq. 4.6), 0 log 0 = 0; from 0 to log k.

    In double precision: in half precision most entropies of a good classifier would be exactly 0.
    """
    return _negative_p_log_p(as_probabilities(outputs)).sum(1)


def _negative_p_log_p(p: np.ndarray) -> np.ndarray:
    return -p * np.log(np.where(p > 0, p, 1.0))


def box_entropies(scores: np.ndarray) -> np.ndarray:
    """Entropy in nats of "this box is right" for scores in [0, 1]: greatest, log 2, at 0.5."""
    scores = np.asarray(scores, dtype=np.float64)
    return _negative_p_log_p(scores) + _negative_p_log_p(1 - scores)


def _of_boxes(reduce: Callable[[np.ndarray], float]) -> Callable[[Sequence[Any]], np.ndarray]:
    def measure(outputs: Sequence[Any]) -> np.ndarray:
        found = [box_entropies(_scores(output)) for output in outputs]
        # A detector that finds nothing does not know: as uncertain as a box can be.
        return np.array([reduce(values) if len(values) else np.log(2.0) for values in found])

    return measure


def _scores(output: Any) -> np.ndarray:
    """(boxes,) of an output of a detector (a dict with "instances"), of Instances, or of plain scores."""
    instances = output["instances"] if isinstance(output, dict) else output
    scores = np.asarray(getattr(instances, "scores", instances), dtype=np.float64).reshape(-1)
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError(
            f"the scores of boxes go from {scores.min():.4g} to {scores.max():.4g}: they are probabilities."
        )
    return scores


# Name -> function of n outputs of a model. Those of boxes are ours: Wang et al. 2018 have classifiers only.
MEASURES: dict[str, Callable[[Any], np.ndarray]] = {
    "confidence": confidence,
    "margin": margin,
    "entropy": entropy,
    "box_entropy_max": _of_boxes(np.max),
    "box_entropy_mean": _of_boxes(np.mean),
    "box_entropy_sum": _of_boxes(np.sum),
}
SMALL_IS_UNCERTAIN = ("confidence", "margin")


def measure(name: str, outputs: Any) -> np.ndarray:
    """
    Raises:
        ValueError: no such measure, or outputs that it cannot be taken of.
    """
    if name not in MEASURES:
        raise ValueError(f"{name!r} is no measure of uncertainty: use one of {', '.join(MEASURES)}.")
    return MEASURES[name](outputs)
