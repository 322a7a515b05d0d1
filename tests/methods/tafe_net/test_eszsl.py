"""ESZSL against its definition, and choices on folds."""

import numpy as np
import pytest

from dyn_d2.methods.tafe_net.choice import grid, harmonic_means, penalties
from dyn_d2.methods.tafe_net.data import DescribedSet, Part
from dyn_d2.methods.tafe_net.eszsl import ESZSL
from dyn_d2.methods.tafe_net.evaluator import calibrated, zero_shot_metrics
from dyn_d2.methods.tafe_net.trainings import Scores


def made(images: int = 40, classes: int = 5, width: int = 6) -> DescribedSet:
    """Features are a linear map of descriptions and noise; the last class is unseen."""
    rng = np.random.default_rng(0)
    descriptions = rng.random((classes, 3)).astype(np.float32)
    mapping = rng.normal(size=(3, width))
    parts = {}
    for name, top in (("train", classes - 1), ("test", classes)):
        labels = rng.integers(0, top, images)
        features = descriptions[labels] @ mapping + 0.02 * rng.normal(size=(images, width))
        parts[name] = Part(features.astype(np.float32), labels)
    return DescribedSet("toy", [f"c{i}" for i in range(classes)], descriptions, parts)


def objective(v: np.ndarray, data: DescribedSet, gamma: float, lam: float) -> float:
    part = data.parts["train"]
    x, s = part.features.astype(float), data.descriptions[data.seen].astype(float)
    y = np.where(part.labels[:, None] == data.seen, 1.0, -1.0)
    terms = (x @ v @ s.T - y, np.sqrt(gamma) * (v @ s.T), np.sqrt(lam) * (x @ v), np.sqrt(gamma * lam) * v)
    return sum(float((term**2).sum()) for term in terms)


def test_no_other_mapping_is_better() -> None:
    data, gamma, lam = made(), 0.3, 0.2
    model = ESZSL(data)
    # The mapping from the scores of unit vectors: x' V S' for x = e_i, then V by least squares.
    scores = model.scores(np.eye(6, dtype=np.float32), gamma, lam)
    v = np.linalg.lstsq(data.descriptions.astype(float), scores.T, rcond=None)[0].T
    assert np.allclose(v @ data.descriptions.T, scores, atol=1e-6)
    best, rng = objective(v, data, gamma, lam), np.random.default_rng(1)
    for _ in range(50):
        assert objective(v + 0.01 * rng.normal(size=v.shape), data, gamma, lam) > best


def test_an_unseen_class_is_found_by_its_description() -> None:
    data = made()
    part = data.parts["test"]
    scores = ESZSL(data).scores(part.features, 0.01, 0.01)
    own = part.labels == 4
    assert scores[own, 4].mean() > scores[~own, 4].mean() + 0.1
    object.__setattr__(data, "candidates", np.array([1, 4]))
    assert np.isfinite(ESZSL(data).scores(part.features, 1.0, 1.0)).any(0).tolist() == [False, True, False, False, True]


def test_weighted_classes_are_repeated_images() -> None:
    data = made()
    part = data.parts["train"]
    counts = np.bincount(part.labels)
    assert counts.min() < counts.max()
    whole = int(np.lcm.reduce(counts))
    rows = np.concatenate([np.repeat(np.flatnonzero(part.labels == c), whole // n) for c, n in enumerate(counts)])
    repeated = DescribedSet(
        "toy", data.classes, data.descriptions, data.parts | {"train": Part(part.features[rows], part.labels[rows])}
    )
    found = ESZSL(data, balance=True).scores(part.features, 0.3, 0.2)
    # The weights have the mean 1, so that gamma stays in proportion to the images.
    expected = ESZSL(repeated).scores(part.features, 0.3 * len(rows) / len(part.labels), 0.2)
    assert np.allclose(found, expected, atol=1e-6)


def test_penalties_cover_all_that_matters() -> None:
    data = made()
    values = np.random.default_rng(0).normal(size=(40, 5))
    tried = penalties([Scores(values, data)])
    gaps = values[:, :4].max(1) - values[:, 4]
    assert tried[0] == 0 and min(tried[1:]) == pytest.approx(gaps.min()) and max(tried) == pytest.approx(gaps.max())


def test_harmonic_means_of_many_penalties_at_once() -> None:
    data = made()
    scores = Scores(np.random.default_rng(0).normal(size=(40, 5)), data)
    tried = np.linspace(-2, 2, 9).tolist()
    expected = [
        zero_shot_metrics(calibrated(scores.values, data.seen, penalty), scores.labels, data, [])["H"]
        for penalty in tried
    ]
    assert harmonic_means(scores, tried) == pytest.approx(expected) and max(expected) > 0


def test_grid() -> None:
    assert grid({}) == [()]
    assert grid({"A": ["1", "2"], "B": ["x"]}) == [("A", "1", "B", "x"), ("A", "2", "B", "x")]
