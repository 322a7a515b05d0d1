"""Settings are chosen on folds of the training images: some seen classes play the unseen ones, and images are held
out. No test image is looked at."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from .data import DescribedSet, described_set
from .eszsl import ESZSL
from .evaluator import calibrated, harmonic_mean, zero_shot_metrics
from .trainings import BALANCED, CLOSED, Planner, Scores, Split, scores_of, train_here

logger = logging.getLogger(__name__)

REGULARISERS = tuple(product(10.0 ** np.arange(-1, 6), 10.0 ** np.arange(-2, 3)))  # gamma and lambda of ESZSL
PENALTIES = 100  # that are tried


@dataclass(frozen=True)
class Choice:
    """What the folds say.

    Attributes:
        keys: KEY VALUE pairs of TAFE-Net.
        regularisers: gamma and lambda of ESZSL.
        penalty: of seen classes, see ``calibrated``; that of the config where none was chosen.
        metrics: means over the folds, with that penalty.
        tried: the main metric of each setting.
    """

    keys: tuple[str, ...]
    regularisers: tuple[float, float] | None
    penalty: float
    metrics: dict[str, float]
    tried: dict[str, float]


def grid(keys: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """All combinations of values, as KEY VALUE pairs; one without any where there are no keys."""
    return [
        tuple(part for pair in zip(keys, values, strict=True) for part in pair) for values in product(*keys.values())
    ]


def choose(
    method: str, split: Split, planner: Planner, seed: int, settings: Sequence[tuple[str, ...]], calibrate: bool
) -> Choice:
    """The setting with the highest H, averaged over the folds.

    Args:
        settings: of TAFE-Net; ESZSL has its own.
        calibrate: with the best penalty of seen classes for each setting; otherwise with the config's.
    """
    folds = range(1, planner.cfg(split).ZERO_SHOT.CUSTOM.FOLDS + 1)
    found: dict[tuple, list[Scores]]
    if method in CLOSED:
        datas = [_data(planner, split, fold) for fold in folds]
        models = [ESZSL(data, method == BALANCED) for data in datas]
        found = {
            pair: [
                Scores(model.scores(data.parts["test"].features, *pair), data)
                for model, data in zip(models, datas, strict=True)
            ]
            for pair in REGULARISERS
        }
    else:
        found = {}
        for keys in settings:
            stages = [planner.stage(method, split, seed, keys, fold) for fold in folds]
            for stage in stages:
                train_here(stage)
            found[keys] = [scores_of(stage) for stage in stages]
    own = None if calibrate else planner.cfg(split).ZERO_SHOT.SEEN_PENALTY
    judged = {setting: _judge(scores, own) for setting, scores in found.items()}
    best = max(judged, key=lambda setting: judged[setting][1]["H"])
    penalty, metrics = judged[best]
    tried = {" ".join(map(str, setting)): value["H"] for setting, (_, value) in judged.items()}
    logger.info(f"{method}, {split.name}: chosen {best or 'the config'}, penalty {penalty:.3g}, H {metrics['H']:.1f}")
    if method in CLOSED:
        return Choice((), best, penalty, metrics, tried)
    return Choice(best, None, penalty, metrics, tried)


def _data(planner: Planner, split: Split, fold: int) -> DescribedSet:
    cfg = planner.cfg(split, ("ZERO_SHOT.CUSTOM.FOLD", str(fold)) if fold else ())
    return described_set(cfg.DATASETS.TRAIN[0])


def _judge(scores: Sequence[Scores], penalty: float | None) -> tuple[float, dict[str, float]]:
    """The penalty, the best one where None is given, and what it gives."""
    if penalty is None:
        tried = penalties(scores)
        penalty = tried[int(np.mean([harmonic_means(each, tried) for each in scores], axis=0).argmax())]
    return penalty, _mean(scores, penalty)


def harmonic_means(scores: Scores, tried: Sequence[float]) -> np.ndarray:
    """H of many penalties at once: a penalty decides no more than whether the best seen or the best unseen class is the
    answer."""
    data, labels = scores.data, scores.labels
    best, top = {}, {}
    for name, classes in (("seen", data.seen), ("unseen", data.unseen)):
        values = scores.values[:, classes]
        best[name], top[name] = classes[values.argmax(1)] == labels, values.max(1)
    gaps = top["seen"] - top["unseen"]
    weights = 1 / np.bincount(labels, minlength=len(data.classes))[labels]  # each class counts the same
    of_unseen = np.isin(labels, data.unseen)
    found = []
    for penalty in tried:
        right = np.where(gaps >= penalty, best["seen"], best["unseen"]) * weights
        u, s = (100 * right[own].sum() / max(len(np.unique(labels[own])), 1) for own in (of_unseen, ~of_unseen))
        found.append(harmonic_mean(u, s))
    return np.array(found)


def penalties(scores: Sequence[Scores]) -> list[float]:
    """0, and quantiles of how far the best seen class is above the best unseen one: only these matter."""
    gaps = []
    for each in scores:
        data = each.data
        gaps.append(each.values[:, data.seen].max(1) - each.values[:, data.unseen].max(1))
    return [0.0, *np.quantile(np.concatenate(gaps), np.linspace(0, 1, PENALTIES + 1)).tolist()]


def _mean(scores: Sequence[Scores], penalty: float) -> dict[str, float]:
    rows = [
        zero_shot_metrics(calibrated(each.values, each.data.seen, penalty), each.labels, each.data, [])
        for each in scores
    ]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
