"""Average precision as the development kit of Pascal VOC defines it (Everingham et al., IJCV 2010), from annotation
files that are read as the loaders read them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dyn_d2.data.validity.voc import VocImage, image_ids, read_xml

THRESHOLDS = tuple(range(50, 100, 5))  # IoU in percent

# Image id, score, box xmin ymin xmax ymax in pixels from 1.
Detection = tuple[str, float, Sequence[float]]
# Image id -> boxes (M, 4) of one class, and which of them are marked as difficult (M,).
GroundTruth = dict[str, tuple[np.ndarray, np.ndarray]]


def read_images(template: str, list_file: str | Path) -> dict[str, VocImage]:
    """Image id -> annotations, of all images of a list.

    Args:
        template: path of an annotation file; {} stands for the image.

    Raises:
        FileNotFoundError: the list, or one of the files, is missing.
        DataError: one of them cannot be used.
    """
    return {name: read_xml(template.format(name), sized=False) for name in image_ids(list_file)}


def of_class(images: Mapping[str, VocImage], name: str) -> GroundTruth:
    """The objects of one class."""
    truth = {}
    for image, found in images.items():
        objects = [item for item in found.objects if item.name == name]
        boxes = np.array([item.box for item in objects], dtype=float).reshape(-1, 4)
        truth[image] = boxes, np.array([item.difficult for item in objects], dtype=bool)
    return truth


def average_precisions(detections: Sequence[Detection], truth: GroundTruth, eleven_points: bool) -> np.ndarray:
    """(10,) AP in percent of one class at IoU 0.50, 0.55 ... 0.95: NaN where it has no object that counts, 0 where it
    has some and nothing was detected."""
    overlaps = best_overlaps(detections, truth)
    return np.array([100 * precision_recall(*overlaps, t / 100, eleven_points)[2] for t in THRESHOLDS])


def best_overlaps(detections: Sequence[Detection], truth: GroundTruth) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The object that each detection, in descending order of score, covers best.

    Returns:
        IoU (D,), which object among all (D,), and the difficult flags of all objects (M,).

    Raises:
        ValueError: a detection of another image.
    """
    first, count = {}, 0
    for name, (boxes, _) in truth.items():
        first[name] = count
        count += len(boxes)
    iou, index = np.full(len(detections), -np.inf), np.zeros(len(detections), dtype=int)
    order = np.argsort([-score for _, score, _ in detections], kind="stable")
    for rank, d in enumerate(order):
        name, _, box = detections[d]
        if name not in truth:
            raise ValueError(f"Image {name!r} of a detection is not in the image set of the data set.")
        if len(boxes := truth[name][0]):
            overlaps = _pixel_iou(np.asarray(box), boxes)
            best = int(overlaps.argmax())
            iou[rank], index[rank] = overlaps[best], first[name] + best
    difficult = [flags for _, flags in truth.values()]
    return iou, index, np.concatenate(difficult) if difficult else np.zeros(0, dtype=bool)


def _pixel_iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of (4,) with (M, 4) in the kit's convention, in which a box includes its last row and column."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    inter = np.maximum(high - low + 1, 0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1)
    return inter / ((box[2:] - box[:2] + 1).prod() + areas - inter)


def precision_recall(
    iou: np.ndarray, index: np.ndarray, difficult: np.ndarray, threshold: float, eleven_points: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    """Recall and precision after each detection, and AP. An object counts once; difficult ones do not count at all."""
    positives = int((~difficult).sum())
    if positives == 0:
        return np.full(len(iou), np.nan), np.full(len(iou), np.nan), float("nan")
    covers = iou > threshold
    ignored = np.zeros(len(iou), dtype=bool)
    ignored[covers] = difficult[index[covers]]
    candidates = np.flatnonzero(covers & ~ignored)
    true = np.zeros(len(iou), dtype=bool)
    true[candidates[np.unique(index[candidates], return_index=True)[1]]] = True  # the first on each object
    tp, fp = np.cumsum(true), np.cumsum(~true & ~ignored)
    recall, precision = tp / positives, tp / np.maximum(tp + fp, np.finfo(float).eps)
    return recall, precision, voc_ap(recall, precision, eleven_points)


def voc_ap(recall: np.ndarray, precision: np.ndarray, eleven_points: bool = False) -> float:
    """Average precision (0 to 1) of a curve: of 11 recall levels (2007), or the area under its envelope."""
    if eleven_points:
        levels = np.arange(0.0, 1.1, 0.1)
        return float(sum(precision[recall >= level].max(initial=0.0) for level in levels) / 11)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())
