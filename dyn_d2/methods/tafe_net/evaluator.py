"""Zero-shot, composition and low-shot scores of models that say how well each described class fits."""

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from dyn_d2.utils.atomic import write_json

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from .data import DescribedSet, described_set

logger = logging.getLogger(__name__)

LISTED = 5  # best classes of an image that are written down


def per_class_accuracy(scores: np.ndarray, labels: np.ndarray, candidates: Sequence[int]) -> float:
    """Percentage of right answers of each class, averaged over the classes that have images; NaN without an image.

    Args:
        scores: (N, C).
        labels: (N,) class numbers.
        candidates: the answers that are possible.
    """
    answers = np.asarray(candidates)
    right = answers[scores[:, answers].argmax(1)] == labels
    present = np.unique(labels)
    return float(100 * np.mean([right[labels == number].mean() for number in present])) if len(present) else np.nan


def harmonic_mean(unseen: float, seen: float) -> float:
    """H = 2 u s / (u + s); 0 where both are 0."""
    return 2 * unseen * seen / (unseen + seen) if unseen + seen else 0.0


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Percentage of images whose class is among the k best; with fewer classes all of them count."""
    if len(labels) == 0:
        return np.nan
    k = min(k, scores.shape[1])
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    return float(100 * (best == labels[:, None]).any(1).mean())


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Percentage: the precision at each positive of the ranking, averaged; NaN without a positive.

    Args:
        scores: (N,).
        positive: (N,) bool.
    """
    if not positive.any():
        return np.nan
    hits = positive[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(100 * precision[hits].mean())


def zero_shot_metrics(scores: np.ndarray, labels: np.ndarray, data: DescribedSet, added: Sequence[int]) -> dict:
    """T1, per-class accuracy on unseen classes with only these as answers; u and s, on unseen and seen classes with all
    as answers; H of both (Xian et al.; Wang 2020, section 5.3)."""
    unseen = [*data.unseen.tolist(), *added]
    everything = [*data.candidates.tolist(), *added]
    of_unseen = np.isin(labels, unseen)
    u = per_class_accuracy(scores[of_unseen], labels[of_unseen], everything)
    s = per_class_accuracy(scores[~of_unseen], labels[~of_unseen], everything)
    t1 = per_class_accuracy(scores[of_unseen], labels[of_unseen], unseen)
    return {"T1": t1, "u": u, "s": s, "H": harmonic_mean(u, s)}


def composition_metrics(scores: np.ndarray, labels: np.ndarray, data: DescribedSet, added: Sequence[int]) -> dict:
    """top-1, 2, 3 among the unseen compositions, and the two numbers that go by the name of AP.

    per_class_top1: top-1 accuracy of each composition, averaged over those with an image: what the authors' code prints
    as AP (there batch by batch), so the one to lay beside Table 5.4. retrieval_mAP: average precision of the ranking of
    all images by each composition, averaged likewise.
    """
    candidates = [*data.candidates.tolist(), *added]
    own = scores[:, candidates]
    number = {label: i for i, label in enumerate(candidates)}
    labels = np.array([number[label] for label in labels.tolist()])
    # Logits of different images are not on one scale, shares of the candidates are.
    shares = torch.from_numpy(own).softmax(1).numpy()
    ap = [average_precision(shares[:, i], labels == i) for i in np.unique(labels)]
    return {
        "per_class_top1": per_class_accuracy(own, labels, range(len(candidates))),
        "retrieval_mAP": float(np.mean(ap)),
        **{f"top{k}": top_k_accuracy(own, labels, k) for k in (1, 2, 3)},
    }


def low_shot_metrics(scores: np.ndarray, labels: np.ndarray, data: DescribedSet, added: Sequence[int]) -> dict:
    """Top-1 and top-5 on novel, base and all images, with all classes as answers (Hariharan and Girshick)."""
    novel = np.isin(labels, data.unseen)
    groups = {"novel": novel, "base": ~novel, "all": np.ones(len(labels), bool)}
    return {
        f"top{k}-{name}": top_k_accuracy(scores[own], labels[own], k) for k in (5, 1) for name, own in groups.items()
    }


def calibrated(scores: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    """Calibrated stacking (Chao, Changpinyo, Gong and Sha, An empirical study and analysis of generalized zero-shot
    learning, ECCV 2016, Eq. 3): classes with training images have to be better by ``penalty`` to be the answer.

    Args:
        scores: (N, C).
        seen: numbers of the classes with training images.
    """
    if not penalty:
        return scores
    shifted = scores.copy()
    shifted[:, seen] -= penalty
    return shifted


METRICS: dict[str, Callable[[np.ndarray, np.ndarray, DescribedSet, Sequence[int]], dict]] = {
    "zero_shot": zero_shot_metrics,
    "unseen_pairs": composition_metrics,
    "low_shot": low_shot_metrics,
}


class DescribedEvaluator(DatasetEvaluator):
    """Percentages of the data set's kind: see ``METRICS``."""

    def __init__(
        self,
        dataset_name: str,
        kind: str,
        output_dir: str | None = None,
        classes: Sequence[str] | None = None,
        seen_penalty: float = 0.0,
    ) -> None:
        """
        Args:
            dataset_name: a data set whose classes have descriptions.
            kind: a key of METRICS.
            output_dir: where {dataset_name}_predictions.json is written; None writes nothing.
            classes: names of all classes that the model knows: the data set's, and after them those that were added.
            seen_penalty: see ``calibrated``.
        """
        self._name, self._kind, self._folder = dataset_name, kind, output_dir
        self._data = described_set(dataset_name)
        self._classes = list(classes or self._data.classes)
        self._seen_penalty = seen_penalty
        self.reset()

    def reset(self) -> None:
        self._rows: list[tuple[int, int, np.ndarray]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """
        Args:
            inputs: "label" and "image_id" are read.
            outputs: "scores", (C,), -inf where a class was not tried.

        Raises:
            ValueError: not one score a class, or NaN.
        """
        for given, output in zip(inputs, outputs, strict=True):
            scores = output["scores"].detach().float().cpu().numpy()
            if scores.shape != (len(self._classes),):
                raise ValueError(
                    f"{self._name} needs {len(self._classes)} scores an image, the model gives {scores.shape} for "
                    f"image {given['image_id']}: use MODEL.META_ARCHITECTURE TAFENet."
                )
            if np.isnan(scores).any():
                raise ValueError(f"the scores of an image of {self._name} are NaN: the model has diverged.")
            self._rows.append((int(given["image_id"]), int(given["label"]), scores))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """{kind: metrics}, in the main process; None in others."""
        parts = comm.gather(self._rows)
        if not comm.is_main_process():
            return None
        rows = sorted((row for part in parts for row in part), key=lambda row: row[0])
        if not rows:
            raise ValueError(f"{self._name}: nothing was evaluated.")
        labels = np.array([label for _, label, _ in rows])
        scores = calibrated(np.stack([row for _, _, row in rows]), self._data.seen, self._seen_penalty)
        if self._folder:
            self._write(self._folder, [(row[0], row[1], own) for row, own in zip(rows, scores, strict=True)])
        added = range(len(self._data.classes), len(self._classes))
        metrics = METRICS[self._kind](scores, labels, self._data, added)
        logger.info(f"{self._name}, {len(rows)} images: " + ", ".join(f"{k} {v:.2f}" for k, v in metrics.items()))
        return {self._kind: metrics}

    def _write(self, folder: str, rows: list[tuple[int, int, np.ndarray]]) -> None:
        predictions = []
        for image_id, label, scores in rows:
            best = np.argsort(-scores, kind="stable")[:LISTED]
            best = best[np.isfinite(scores[best])]
            predictions.append(
                {
                    "image_id": image_id,
                    "class": self._classes[label],
                    "best": [self._classes[i] for i in best],
                    "scores": scores[best].tolist(),
                }
            )
        write_json(os.path.join(folder, f"{self._name}_predictions.json"), predictions, indent=None)
