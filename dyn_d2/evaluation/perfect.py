"""The score of a perfect model: ground truth handed to a data set's evaluator as predictions.

Whatever keeps it from 100 keeps every model from 100, and is a defect of the data or of the evaluator. It is found in
seconds, before anything is trained.

Shape shorthand: N - objects of an image; H, W - its height and width; K - classes.
"""

import logging
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dyn_d2.data.check_report import Report
from dyn_d2.data.registered import registered_records
from dyn_d2.data.semantic.check import other_size
from dyn_d2.data.semantic.label_maps import IGNORE, read_classes
from dyn_d2.data.validity import rle
from dyn_d2.data.validity.annotation import mask_defect
from dyn_d2.data.validity.coco import DataError, is_masked
from dyn_d2.data.validity.values import flag

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances, polygons_to_bitmask

from .build import evaluator_types
from .few_shot import few_shot_groups
from .quiet import quiet_tables

logger = logging.getLogger(__name__)

# What is reported of each task, and that it is a share of 100.
MAIN_METRICS = {"bbox": "AP", "segm": "AP", "sem_seg": "mIoU", "classification": "top1_accuracy"}
FULL = 100.0
TOLERANCE = 0.05  # boxes are written with one decimal for VOC, and fractions of pixels are cut at the border
# Detections of an image that count, by evaluator_type.
LIMITS = {"coco": 100, "lvis": 300}
CLOSEST = 0.95  # IoU from which on a prediction is right at every threshold
MOST_MASK_BYTES = 2**30  # of one image
# evaluator_types whose scores can be checked so.
KINDS = ("coco", "lvis", "pascal_voc", "sem_seg", "classification")


@dataclass
class PerfectScore:
    """Scores of a perfect model, and why they are below 100.

    Attributes:
        name: of the data set.
        scores: task -> its main metric; NaN where there is nothing to score.
        reasons: why a score is below 100, in words.
        skipped: why nothing was scored, "" where something was.
        counted: how many objects the evaluator has to count at least, so that NaN is no score.
    """

    name: str
    scores: dict[str, float] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    skipped: str = ""
    counted: int = 0

    @property
    def ok(self) -> bool:
        """Whether no score is below 100."""
        return all(
            not self.counted if math.isnan(score) else score >= FULL - TOLERANCE for score in self.scores.values()
        )

    def text(self) -> str:
        """One line."""
        if self.skipped:
            return f"perfect predictions were not scored: {self.skipped}"
        if self.scores and all(map(math.isnan, self.scores.values())):
            return "perfect predictions: no object to score"
        shown = ", ".join(
            f"{task} {MAIN_METRICS[task]} " + ("(no object to score)" if math.isnan(score) else f"{score:.2f}")
            for task, score in self.scores.items()
        )
        return f"perfect predictions score {shown}"

    def add_to(self, report: Report) -> None:
        """Note the result in a report: as a problem where a score is below 100."""
        if self.ok:
            report.notes.append(self.text())
            return
        for reason in self.reasons:
            report.add("imperfect", self.name, f"{self.text()}: {reason}")


def perfect_score(dataset_name: str, cfg: CfgNode) -> PerfectScore:
    """Score the ground truth of a registered data set with its own evaluator.

    Args:
        cfg: which evaluator it is, and whether masks are evaluated (MODEL.MASK_ON), follow from it.

    Raises:
        ValueError: the data or the metadata cannot be evaluated at all.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type")
    result = PerfectScore(dataset_name)
    if kind not in KINDS:
        result.skipped = f"the evaluator of {kind} takes no ground truth as predictions"
        return result
    records = registered_records(dataset_name)
    predict = _predictor(kind, metadata, cfg)
    with unchanged_metadata([dataset_name]), tempfile.TemporaryDirectory(prefix="dyn_d2_") as folder, quiet_tables():
        evaluator = evaluator_types()[kind](cfg, dataset_name, folder, few_shot_groups(metadata))
        if cfg.MODEL.MASK_ON and kind in LIMITS and (large := _too_large(records)):
            result.skipped = large
            return result
        evaluator.reset()
        for record in records:
            evaluator.process([record], [predict(record)])
        found = evaluator.evaluate() or {}
    if not found:
        result.skipped = "there is no ground truth"
        return result
    result.scores = {
        task: float(found[task][metric]) for task, metric in MAIN_METRICS.items() if metric in found.get(task, {})
    }
    if kind in LIMITS:
        result.counted = sum(len(_objects(record)) for record in records)
    if not result.ok:
        result.reasons = list(_reasons(records, kind, "segm" in result.scores)) or [
            "no object explains it: the evaluator and the data set disagree, e.g. in the ids or names of classes, or "
            "in the annotations that they read"
        ]
        result.reasons[0] += _low_classes(found, result.scores)
    return result


@contextmanager
def unchanged_metadata(names: Sequence[str]) -> Iterator[None]:
    """After the block the metadata of these data sets are what they were before it."""
    before = {name: dict(MetadataCatalog.get(name).__dict__) for name in names}
    try:
        yield
    finally:
        for name, values in before.items():
            attributes = MetadataCatalog.get(name).__dict__
            attributes.clear()
            attributes.update(values)


def _predictor(kind: str, metadata: Any, cfg: CfgNode) -> Any:
    """From a record to what a perfect model gives for it."""
    if kind == "sem_seg":
        classes, ignore = len(metadata.stuff_classes), metadata.get("ignore_label", IGNORE)
        return lambda record: {"sem_seg": _scores_of_map(record, classes, ignore)}
    if kind == "classification":
        classes = len(metadata.thing_classes)
        return lambda record: {"scores": torch.eye(classes)[int(record["label"])]}
    return lambda record: {"instances": _instances(record, cfg.MODEL.MASK_ON)}


def _scores_of_map(record: dict, classes: int, ignore: int) -> torch.Tensor:
    """(K, H, W) scores; where nothing counts the first class has the best."""
    path = record["sem_seg_file_name"]
    labels = torch.from_numpy(read_classes(path, classes, ignore).astype(np.int64))
    if problem := other_size(record, labels.shape):
        raise DataError(f"{path} {problem}.")
    labels = torch.where(labels < classes, labels, 0)
    return torch.nn.functional.one_hot(labels, classes).permute(2, 0, 1).float()


def _objects(record: dict) -> list[dict]:
    """The annotations that a detector is asked for."""
    return [a for a in record.get("annotations", ()) if not flag(a.get("iscrowd"))]


def _instances(record: dict, masks: bool) -> Instances:
    """Ground truth as a detector gives it: boxes within the image, every object with the score 1."""
    objects = _objects(record)
    size = _size(record)
    found = Instances(size)
    found.pred_boxes = Boxes(torch.tensor([_clipped(a, size) for a in objects], dtype=torch.float32).reshape(-1, 4))
    found.scores = torch.ones(len(objects))
    found.pred_classes = torch.tensor([int(a["category_id"]) for a in objects], dtype=torch.int64)
    if masks:
        found.pred_masks = torch.zeros(len(objects), *size, dtype=torch.bool)
        for slot, annotation in zip(found.pred_masks, objects, strict=True):
            slot.copy_(torch.from_numpy(_mask(annotation, size)))
    return found


def _size(record: dict) -> tuple[int, int]:
    if record.get("height") and record.get("width"):
        return int(record["height"]), int(record["width"])
    from detectron2.data.detection_utils import read_image

    return read_image(record["file_name"]).shape[:2]


def _too_large(records: Sequence[dict]) -> str:
    """Why the masks of a set, each as a whole image, do not fit into memory; "" where they do."""
    for record in records:
        height, width = _size(record)
        need = len(_objects(record)) * height * width
        if need > MOST_MASK_BYTES:
            return (
                f"the masks of {record.get('file_name')}, {len(_objects(record))} of {width} x {height}, are too large"
            )
    return ""


def _box(annotation: dict) -> list[float]:
    box = [float(side) for side in annotation["bbox"]]
    return BoxMode.convert(box, annotation["bbox_mode"], BoxMode.XYXY_ABS)


def _clipped(annotation: dict, size: tuple[int, int]) -> list[float]:
    x0, y0, x1, y1 = _box(annotation)
    height, width = size
    return [min(max(x0, 0), width), min(max(y0, 0), height), min(max(x1, 0), width), min(max(y1, 0), height)]


def _mask(annotation: dict, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool; empty for an object without a usable mask, which the evaluator then refuses or misses."""
    mask = annotation.get("segmentation")
    if mask is None or not is_masked(annotation) or mask_defect(mask, size[1], size[0]):
        return np.zeros(size, dtype=bool)
    if isinstance(mask, dict):
        return np.ascontiguousarray(rle.decode(rle.run_lengths(mask), *size))
    return polygons_to_bitmask([np.asarray(polygon, dtype=np.float64) for polygon in mask], *size)


def _reasons(records: Sequence[dict], kind: str, masks: bool) -> Iterator[str]:
    """What in the data keeps a perfect model from 100."""
    if kind not in ("coco", "lvis", "pascal_voc"):
        return
    limit = LIMITS.get(kind, math.inf)
    crowded = [r for r in records if len(_objects(r)) > limit]
    if crowded:
        most = max(len(_objects(r)) for r in crowded)
        yield (
            f"{len(crowded)} images have more than the {limit} objects that count, {crowded[0].get('file_name')} and "
            f"others up to {most}"
        )
    cut, empty = _lost_boxes(records)
    for boxes, what in ((empty, "boxes without area"), (cut, "boxes that leave their images, and cannot be predicted")):
        if boxes:
            yield f"{_count(boxes)} {what}, the first is {boxes[0]}"
    if kind == "pascal_voc" and (same := _same_objects(records)):
        yield f"{_count(same)} the box and class of another in the image, the first is {same[0]}"
    if masks and (lost := _lost_masks(records)):
        yield f"{_count(lost)} masks without a pixel, the first is {lost[0]}"
    times = Counter(record.get("image_id") for record in records)
    twice = [image for image, count in times.items() if count > 1]
    if twice:
        yield f"{len(twice)} images are listed more than once, the first has the id {twice[0]!r}"


def _count(found: Sequence[str]) -> str:
    return "1 object has" if len(found) == 1 else f"{len(found)} objects have"


def _where(record: dict, position: int, annotation: dict) -> str:
    return f"{record.get('file_name')}, annotation {annotation.get('id', position)!r}"


def _lost_boxes(records: Sequence[dict]) -> tuple[list[str], list[str]]:
    """Objects of which a prediction within the image covers too little, and those that have no area."""
    cut, empty = [], []
    for record in records:
        size = _size(record)
        for position, annotation in enumerate(_objects(record)):
            whole, inside = _area(_box(annotation)), _area(_clipped(annotation, size))
            if whole <= 0:
                empty.append(_where(record, position, annotation))
            elif inside < CLOSEST * whole:
                cut.append(_where(record, position, annotation))
    return cut, empty


def _same_objects(records: Sequence[dict]) -> list[str]:
    """Objects with class and box of an earlier one, of which VOC's metric gives a detection to the first alone."""
    found = []
    for record in records:
        seen: set[tuple] = set()
        for position, annotation in enumerate(_objects(record)):
            key = (annotation["category_id"], *(round(side, 1) for side in _box(annotation)))
            found += [_where(record, position, annotation)] if key in seen else []
            seen.add(key)
    return found


def _lost_masks(records: Sequence[dict]) -> list[str]:
    return [
        _where(record, position, annotation)
        for record in records
        for position, annotation in enumerate(_objects(record))
        if not _mask(annotation, _size(record)).any()
    ]


def _area(box: Sequence[float]) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _low_classes(found: dict, scores: dict[str, float]) -> str:
    """The classes that lose, by task."""
    parts = []
    for task in scores:
        prefix = "IoU-" if task == "sem_seg" else "accuracy-" if task == "classification" else "AP-"
        low = {
            name.removeprefix(prefix): value
            for name, value in found[task].items()
            if name.startswith(prefix) and value < FULL - TOLERANCE
        }
        if low:
            shown = ", ".join(f"{name} {value:.1f}" for name, value in sorted(low.items(), key=lambda x: x[1])[:5])
            parts.append(f" ({task}, lowest classes: {shown})")
    return "".join(parts)


def not_scored(most: int) -> str:
    """What a report says of a set with more than ``most`` images."""
    return f"perfect predictions were not scored: more than {most} images"


def check_perfect(name: str, cfg: CfgNode, most: int) -> Report:
    """The result of :func:`perfect_score` as a report.

    Args:
        most: sets of more images are not scored, which the report says.
    """
    report = Report(f"{name}, perfect predictions", counted=False)
    try:
        report.images = len(registered_records(name))
        if report.images > most:
            report.notes.append(not_scored(most))
        else:
            perfect_score(name, cfg).add_to(report)
    except (ValueError, OSError) as error:
        report.add("imperfect", name, f"perfect predictions cannot be scored: {error}")
    return report
