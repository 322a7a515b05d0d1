"""Top-1 and top-5 of image classification."""

import logging
import os
from typing import Any

import numpy as np
import torch

from dyn_d2.utils.atomic import write_json

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

logger = logging.getLogger(__name__)

TOP = 5


class ClassificationEvaluator(DatasetEvaluator):
    """Error and accuracy in percent, over all images and per class.

    An image counts in top-5 when its class is among the five most probable; with five classes or fewer there is no
    top-5.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        """
        Args:
            dataset_name: its thing_classes are the names of the classes.
            output_dir: where {dataset_name}_predictions.json is written; None writes nothing.
        """
        self._name, self._folder = dataset_name, output_dir
        self._classes = list(MetadataCatalog.get(dataset_name).thing_classes)
        self.reset()

    def reset(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """
        Args:
            inputs: "label" and "image_id" are read.
            outputs: "scores", the (K,) probabilities.

        Raises:
            ValueError: there are no scores, not one a class, or they are not finite.
        """
        if not inputs:
            return
        for given, output in zip(inputs, outputs, strict=True):
            if "scores" not in output or output["scores"].shape != (len(self._classes),):
                has = tuple(output["scores"].shape) if "scores" in output else "none"
                raise ValueError(
                    f"{self._name} needs {len(self._classes)} scores an image, the model gives {has} for image "
                    f"{given['image_id']}: use MODEL.META_ARCHITECTURE ImageClassifier with "
                    f"MODEL.IMAGE_CLASSIFIER.NUM_CLASSES {len(self._classes)}."
                )
        scores = torch.stack([output["scores"].detach().float() for output in outputs])
        if not torch.isfinite(scores).all():
            raise ValueError(f"the scores of an image of {self._name} are not finite: the model has diverged.")
        best = scores.topk(min(TOP, scores.shape[1]))
        for given, values, classes in zip(inputs, best.values.tolist(), best.indices.tolist(), strict=True):
            row = {"image_id": given["image_id"], "label": int(given["label"]), "classes": classes, "scores": values}
            self._rows.append(row | ({"file_name": given["file_name"]} if "file_name" in given else {}))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """{"classification": metrics}, in the main process; None in others."""
        parts = comm.gather(self._rows)
        if not comm.is_main_process():
            return None
        rows = sorted((row for part in parts for row in part), key=lambda row: str(row["image_id"]))
        if not rows:
            raise ValueError(f"{self._name}: nothing was evaluated.")
        if self._folder:
            write_json(os.path.join(self._folder, f"{self._name}_predictions.json"), rows, indent=None)
        metrics = classification_metrics(
            np.array([row["label"] for row in rows]), np.array([row["classes"] for row in rows]), self._classes
        )
        shown = ", ".join(f"{name} {value:.2f}" for name, value in metrics.items() if not name.startswith("accuracy-"))
        logger.info(f"{self._name}, {len(rows)} images: {shown}")
        return {"classification": metrics}


def classification_metrics(labels: np.ndarray, best: np.ndarray, classes: list[str]) -> dict[str, float]:
    """Percentages of right and wrong answers.

    Args:
        labels: (N,) true classes, N > 0.
        best: (N, T) most probable classes, best first.
        classes: K names.

    Returns:
        top1_error, top1_accuracy; with more than five classes top5_error and top5_accuracy; "accuracy-NAME", top-1, of
        every class that has an image.
    """
    hits = best == labels[:, None]
    found = {"top1": 100.0 * hits[:, 0].mean()}
    if len(classes) > TOP:
        found["top5"] = 100.0 * hits.any(1).mean()
    metrics = {f"{name}_error": float(100.0 - value) for name, value in found.items()}
    metrics |= {f"{name}_accuracy": float(value) for name, value in found.items()}
    counts = np.bincount(labels, minlength=len(classes))
    right = np.bincount(labels[hits[:, 0]], minlength=len(classes))
    absent = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if absent:
        logger.warning(f"{len(absent)} of {len(classes)} classes have no image: {', '.join(absent[:20])}")
    per_class = zip(classes, right, counts, strict=True)
    return metrics | {f"accuracy-{name}": float(100.0 * n / total) for name, n, total in per_class if total}
