"""Semantic segmentation at every level of a concept tree.

Shape shorthand: K - labels of the data set; H, W - height and width of the image; D - depth of the tree.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dyn_d2.data.semantic.label_maps import IGNORE
from dyn_d2.hierarchy import load_hierarchy
from dyn_d2.utils.atomic import write_json

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.sem_seg_evaluation import load_image_into_numpy_array
from detectron2.utils import comm

logger = logging.getLogger(__name__)


class ConceptLevelEvaluator(DatasetEvaluator):
    """IoU and accuracy of the labels, and of the concepts above them at every depth of the tree, in percent.

    A prediction is right at depth d if it lies below the same concept of depth d as the truth; labels that stand higher
    count as themselves. Where a concept has several parents, its first one counts. At the deepest level these are the
    scores of the labels. Pixels with metadata.ignore_label do not count; classes without a pixel of ground truth are
    left out of the means and listed.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        """
        Args:
            dataset_name: its records have sem_seg_file_name; its metadata stuff_classes, hierarchy and label_set, and
                may have ignore_label (255).
            output_dir: where {dataset_name}_levels.json is written; None writes nothing.

        Raises:
            HierarchyError: the labels of the tree are not the classes of the data set.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self._name, self._folder = dataset_name, output_dir
        self._classes = list(metadata.stuff_classes)
        self._ignore = metadata.get("ignore_label", IGNORE)
        tree = load_hierarchy(metadata.hierarchy)
        tree.check_labels(metadata.label_set, self._classes)
        labels = tree.labels(metadata.label_set)
        self._levels = tree.by_depth([labels[name] for name in self._classes])[1:]  # at the root all are equal
        self._truth = {r["file_name"]: r["sem_seg_file_name"] for r in DatasetCatalog.get(dataset_name)}
        self.reset()

    def reset(self) -> None:
        self._counts = np.zeros((len(self._classes), len(self._classes)), np.int64)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """
        Args:
            inputs: "file_name" is read.
            outputs: "sem_seg", (K, H, W) scores.

        Raises:
            ValueError: there is not one score a label, or the ground truth has another size or unknown labels.
        """
        for given, output in zip(inputs, outputs, strict=True):
            scores, file = output["sem_seg"], self._truth[given["file_name"]]
            truth = torch.as_tensor(np.array(load_image_into_numpy_array(file, dtype=int)), device=scores.device)
            if scores.shape != (len(self._classes), *truth.shape):
                raise ValueError(
                    f"{file}: {len(self._classes)} classes and {tuple(truth.shape)} pixels need scores of as many, the "
                    f"model gives {tuple(scores.shape)}."
                )
            self._counts += confusion(scores.argmax(0), truth, len(self._classes), self._ignore, file)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """{"levels": metrics}, in the main process; None in others.

        Raises:
            ValueError: nothing was evaluated.
        """
        parts = comm.gather(self._counts)
        if not comm.is_main_process():
            return None
        counts = sum(parts)
        if not counts.sum():
            raise ValueError(f"{self._name}: no labelled pixel was evaluated.")
        metrics, details = level_metrics(counts, self._classes, self._levels)
        if details["absent"]:
            logger.warning(
                f"{self._name}: no pixel of {len(details['absent'])} of {len(self._classes)} classes, which are left "
                f"out of the means: {', '.join(details['absent'][:20])}{', ...' if len(details['absent']) > 20 else ''}"
            )
        if self._folder:
            write_json(os.path.join(self._folder, f"{self._name}_levels.json"), metrics | details)
        logger.info(f"{self._name}: " + ", ".join(f"{name} {value:.2f}" for name, value in metrics.items()))
        return {"levels": metrics}


def confusion(
    predicted: torch.Tensor, truth: torch.Tensor, classes: int, ignore_label: int, source: str = "the ground truth"
) -> np.ndarray:
    """Pixels by true class (row) and predicted class (column).

    Args:
        predicted, truth: (H, W) integers.
        classes: K.
        source: of ``truth``, for the message.

    Returns:
        (K, K) int64.

    Raises:
        ValueError: ``truth`` holds something else than 0 ... K - 1 and ``ignore_label``.
    """
    counted = truth != ignore_label
    truth, predicted = truth[counted].long(), predicted[counted].long()
    if truth.numel() and (truth.min() < 0 or truth.max() >= classes):
        wrong = truth[(truth < 0) | (truth >= classes)].unique()[:10].tolist()
        raise ValueError(
            f"{source} holds {', '.join(map(str, wrong))}: neither one of {classes} classes (from 0) nor the ignore "
            f"label {ignore_label}."
        )
    return torch.bincount(truth * classes + predicted, minlength=classes**2).view(classes, classes).cpu().numpy()


def level_metrics(
    counts: np.ndarray, classes: Sequence[str], levels: Sequence[Sequence[str]]
) -> tuple[dict[str, float], dict[str, Any]]:
    """
    Args:
        counts: (K, K) int, as from :func:`confusion`, not all zero.
        levels: for each level the concept of each class, from :meth:`Hierarchy.by_depth`.

    Returns:
        mIoU, pixel_accuracy and class_accuracy of the labels, and mIoU-depthD, pixel_accuracy-depthD of every depth, in
        percent; and details: IoU by concept at each depth, and the names of absent labels.
    """
    iou, accuracy = _scores(counts)
    present = counts.sum(1) > 0
    metrics = {
        "mIoU": float(np.mean(iou[present])),
        "pixel_accuracy": _pixel_accuracy(counts),
        "class_accuracy": float(np.mean(accuracy[present])),
    }
    by_depth: dict[str, Mapping[str, float]] = {}
    for depth, concepts in enumerate(levels, 1):
        names = list(dict.fromkeys(concepts))
        merge = np.array([[concept == name for name in names] for concept in concepts], np.int64)
        merged = merge.T @ counts @ merge
        iou_here, _ = _scores(merged)
        there = merged.sum(1) > 0
        metrics[f"mIoU-depth{depth}"] = float(np.mean(iou_here[there]))
        metrics[f"pixel_accuracy-depth{depth}"] = _pixel_accuracy(merged)
        by_depth[f"depth{depth}"] = {name: float(iou_here[i]) for i, name in enumerate(names) if there[i]}
    absent = [name for name, seen in zip(classes, present, strict=True) if not seen]
    return metrics, {"IoU": by_depth, "absent": absent}


def _scores(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU and accuracy of each class in percent; 0 for classes without ground truth, which nobody may average."""
    hits, truth, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    return 100 * hits / np.maximum(truth + predicted - hits, 1), 100 * hits / np.maximum(truth, 1)


def _pixel_accuracy(counts: np.ndarray) -> float:
    return float(100 * counts.trace() / counts.sum())
