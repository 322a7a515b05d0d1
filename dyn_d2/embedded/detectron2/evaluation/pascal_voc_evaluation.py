"""Detection in the metric of the PASCAL VOC development kit."""

import logging
import xml.etree.ElementTree as ET
from collections import OrderedDict, defaultdict
from functools import cache
from pathlib import Path

import numpy as np

from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from .evaluator import DatasetEvaluator
from .instance_evaluation import log_classes_without_ground_truth, per_class_table

THRESHOLDS = tuple(range(50, 100, 5))  # IoU in percent

# Per image: boxes (M, 4) of one class, and which of them are marked as difficult (M,).
GroundTruth = dict[str, tuple[np.ndarray, np.ndarray]]


class PascalVOCDetectionEvaluator(DatasetEvaluator):
    """AP at IoU 0.5 to 0.95 as the development kit defines it: 11 points in 2007, the exact area from 2010 on.

    Results are {"bbox": {"AP", "AP50", "AP75"}}, 0 to 100, means over classes that have ground truth.

    Args:
        dataset_name: its metadata has "dirname", "split", "year" (2007 or 2012) and "thing_classes".
    """

    def __init__(self, dataset_name: str):
        self._dataset_name = dataset_name
        self._logger = logging.getLogger(__name__)
        meta = MetadataCatalog.get(dataset_name)
        if meta.year not in (2007, 2012):
            raise ValueError(f"The year of {dataset_name} is 2007 or 2012, not {meta.year!r}.")
        self._is_2007 = meta.year == 2007
        self._class_names = meta.thing_classes
        root = Path(PathManager.get_local_path(meta.dirname))
        self._anno_file_template = str(root / "Annotations" / "{}.xml")
        self._image_set_path = str(root / "ImageSets" / "Main" / f"{meta.split}.txt")

    def reset(self) -> None:
        self._predictions: dict[int, list[tuple]] = defaultdict(list)  # class -> (image id, score, box)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for given, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            # VOC counts pixels from 1. Digits are those of the kit's result files.
            boxes = instances.pred_boxes.tensor + instances.pred_boxes.tensor.new_tensor([1, 1, 0, 0])
            for cls, score, box in zip(
                instances.pred_classes.tolist(), instances.scores.tolist(), boxes.tolist(), strict=True
            ):
                self._predictions[cls].append((given["image_id"], round(score, 3), [round(x, 1) for x in box]))

    def evaluate(self) -> dict | None:
        gathered = comm.gather(dict(self._predictions), dst=0)
        if not comm.is_main_process():
            return None
        names = _image_names(self._image_set_path)
        aps = np.full((len(THRESHOLDS), len(self._class_names)), np.nan)
        for k, class_name in enumerate(self._class_names):
            detections = [line for part in gathered for line in part.get(k, [])]
            truth = _ground_truth(self._anno_file_template, names, class_name)
            overlaps = _best_overlaps(detections, truth)
            for t, percent in enumerate(THRESHOLDS):
                aps[t, k] = _precision_recall(*overlaps, percent / 100, self._is_2007)[2] * 100
        per_class = dict(zip(self._class_names, aps.mean(axis=0).tolist(), strict=True))
        kind = "11-point (2007)" if self._is_2007 else "area (2012)"
        self._logger.info(f"{self._dataset_name}, {kind} AP of each class:\n" + per_class_table(per_class))
        log_classes_without_ground_truth(self._logger, per_class)
        present = ~np.isnan(aps[0])
        means = aps[:, present].mean(axis=1) if present.any() else np.full(len(THRESHOLDS), np.nan)
        at = dict(zip(THRESHOLDS, means.tolist(), strict=True))
        return OrderedDict(bbox={"AP": float(means.mean()), "AP50": at[50], "AP75": at[75]})


@cache
def parse_rec(filename: str) -> list[dict]:
    """Objects of a VOC annotation file: name, difficult, bbox (xmin, ymin, xmax, ymax in pixels from 1)."""
    with PathManager.open(filename) as f:
        root = ET.parse(f)
    return [
        {
            "name": node.findtext("name"),
            "difficult": int(node.findtext("difficult", "0")),
            "bbox": [int(float(node.findtext(f"bndbox/{side}"))) for side in ("xmin", "ymin", "xmax", "ymax")],
        }
        for node in root.findall("object")
    ]


def _image_names(imagesetfile: str) -> list[str]:
    with PathManager.open(imagesetfile) as f:
        return [line.split()[0] for line in f if line.strip()]


def _ground_truth(annopath: str, names: list[str], classname: str) -> GroundTruth:
    truth = {}
    for name in names:
        objects = [x for x in parse_rec(annopath.format(name)) if x["name"] == classname]
        boxes = np.array([x["bbox"] for x in objects], dtype=float).reshape(-1, 4)
        truth[name] = boxes, np.array([x["difficult"] for x in objects], dtype=bool)
    return truth


def _best_overlaps(detections: list[tuple], truth: GroundTruth) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The object that each detection, in descending order of score, covers best.

    Returns:
        IoU (D,), which object among all (D,), and the difficult flags of all objects (M,).
    """
    first, count = {}, 0
    for name, (boxes, _) in truth.items():
        first[name] = count
        count += len(boxes)
    iou, index = np.full(len(detections), -np.inf), np.zeros(len(detections), dtype=int)
    order = np.argsort([-score for _, score, _ in detections])
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


def _precision_recall(
    iou: np.ndarray, index: np.ndarray, difficult: np.ndarray, threshold: float, use_07_metric: bool
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
    return recall, precision, voc_ap(recall, precision, use_07_metric)


def voc_ap(rec: np.ndarray, prec: np.ndarray, use_07_metric: bool = False) -> float:
    """Average precision (0 to 1) of a curve: of 11 recall levels (2007), or the area under its envelope."""
    if use_07_metric:
        levels = np.arange(0.0, 1.1, 0.1)
        return float(sum(prec[rec >= level].max(initial=0.0) for level in levels) / 11)
    envelope = np.maximum.accumulate(prec[::-1])[::-1]
    return float((np.diff(rec, prepend=0.0) * envelope).sum())


def voc_eval(
    detpath: str, annopath: str, imagesetfile: str, classname: str, ovthresh: float = 0.5, use_07_metric: bool = False
) -> tuple[np.ndarray, np.ndarray, float]:
    """Recall, precision and AP (0 to 1) of one class, from files.

    Args:
        detpath: template of result files, lines "image score xmin ymin xmax ymax"; {} stands for the class.
        annopath: template of annotation files; {} stands for the image.
        imagesetfile: text file that lists the images.
        ovthresh: IoU that a detection has to exceed.
    """
    with open(detpath.format(classname)) as f:
        lines = [line.split() for line in f if line.strip()]
    detections = [(name, float(score), [float(x) for x in box]) for name, score, *box in lines]
    truth = _ground_truth(annopath, _image_names(imagesetfile), classname)
    return _precision_recall(*_best_overlaps(detections, truth), ovthresh, use_07_metric)
