"""Checks of label maps before training: the values that evaluation and training will read, and what is missing."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dyn_d2.data.check_report import Problem, Report
from dyn_d2.data.validity.records import examine_maps

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from .label_maps import IGNORE, Record, read_label_map


@dataclass(frozen=True)
class BeyondClasses(Problem):
    """A label map with values that are no class.

    Attributes:
        values: these.
    """

    values: tuple[int, ...] = ()


def has_label_maps(metadata: Metadata) -> bool:
    """Whether a data set is one of semantic segmentation."""
    return bool(metadata.get("stuff_classes"))


def check_label_maps(name: str, cfg: CfgNode | None = None, limit: int = 0) -> Report:
    """Check the label maps of a registered data set.

    Args:
        cfg: what it is trained with; its ignore value is held against that of the data set.
        limit: look at this many maps, evenly spread; 0 for all. The report says so.

    Returns:
        A report in which the "objects" of a class are the maps that have a pixel of it.
    """
    metadata = MetadataCatalog.get(name)
    report = Report(name)
    try:
        found = list(DatasetCatalog.get(name))
    except Exception as error:  # the loader may be anyone's; what it says is the problem
        report.add("cannot_load", name, f"{type(error).__name__}: {error}")
        return report
    report.problems += examine_maps(found, name)
    records = [r for r in found if isinstance(r, dict) and isinstance(r.get("sem_seg_file_name"), str)]
    report.images = len(found)
    if not found:
        report.add("no_images", name, "has no image")
    if cfg is not None:
        report.problems += ignore_problems(name, cfg)
    step = max(1, -(-len(records) // limit)) if limit else 1
    if step > 1:
        report.notes.append(f"{len(records[::step])} of {len(records)} label maps were looked at")
    report = _look(report, records[::step], list(metadata.stuff_classes), metadata.get("ignore_label", IGNORE))
    _fold_beyond_tree(report, metadata)
    return report


def ignore_problems(name: str, cfg: CfgNode) -> list[Problem]:
    """Whether evaluation (metadata.ignore_label) and training (MODEL.SEM_SEG_HEAD.IGNORE_VALUE) leave out the same."""
    label, value = MetadataCatalog.get(name).get("ignore_label", IGNORE), cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    if label == value:
        return []
    what = f"ignore_label of the data set is {label}, MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {value}"
    return [Problem("ignore_label", name, what)]


def _look(report: Report, records: Sequence[Record], classes: list[str], ignore: Any) -> Report:
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda record: _values(record, len(classes), ignore), records))
    ignored = False
    for values in found:
        if isinstance(values, Problem):
            report.problems.append(values)
            continue
        ignored |= ignore in values
        report.count([(classes[value], False) for value in values if value != ignore])
    present = [name for name in classes if name in report.counts]
    if len(classes) > 1 and len(present) == 1 and ignored and not report.problems:
        absent = ", ".join(name for name in classes if name not in present)
        what = f"the label maps hold {classes.index(present[0])} ({present[0]}) and {ignore}, which is ignored, only: "
        what += f"{absent} has no pixel"
        report.add("absent_class", report.title, what)
    return report.finish(classes)


def _fold_beyond_tree(report: Report, metadata: Metadata) -> None:
    """Say once what many label maps hold and the labels of the data set's tree do not have."""
    beyond = [problem for problem in report.problems if isinstance(problem, BeyondClasses)]
    maps = Counter(value for problem in beyond for value in problem.values)
    often = sorted(value for value, count in maps.items() if count > 1)
    if not metadata.get("hierarchy", None) or not often:
        return
    folded = {problem for problem in beyond if set(problem.values) <= set(often)}
    report.problems = [problem for problem in report.problems if problem not in folded]
    shown = ", ".join(map(str, often[:10])) + (", ..." if len(often) > 10 else "")
    classes, ignore = list(metadata.stuff_classes), metadata.get("ignore_label", IGNORE)
    labels = ", ".join(f"{i} {name}" for i, name in enumerate(classes[:20])) + (", ..." if len(classes) > 20 else "")
    tree = metadata.get("tree_file", None) or (t if len(t := metadata.hierarchy) < 100 else "of the config")
    what = f"{len(folded)} label maps hold {shown}, but the tree {tree} has {len(classes)} labels for them ({labels})"
    if len(often) == 1:
        what += f"; where nothing counts at {shown}, set DATASETS.CUSTOM.IGNORE to it in place of {ignore}"
    report.add("beyond_tree", report.title, what)


def _values(record: Record, classes: int, ignore: Any) -> list[int] | Problem:
    """The values of one map, or what is wrong with it."""
    path, image_id = record["sem_seg_file_name"], record.get("image_id")
    if not isinstance(path, str) or not Path(path).is_file():
        return Problem("bad_label_map", str(path), "not found", image_id)
    try:
        labels = read_label_map(path)
    except ValueError as error:
        return Problem("bad_label_map", path, str(error).removeprefix(f"{path} "), image_id)
    if what := other_size(record, labels.shape):
        return Problem("bad_label_map", path, what, image_id)
    values = np.flatnonzero(np.bincount(labels.ravel(), minlength=1)).tolist()
    wrong = [value for value in values if value >= classes and value != ignore]
    if wrong:
        shown = ", ".join(map(str, wrong[:10])) + (", ..." if len(wrong) > 10 else "")
        what = f"holds {shown}: neither one of {classes} classes (from 0) nor the ignore label {ignore}"
        return BeyondClasses("bad_label_map", path, what, image_id, values=tuple(wrong))
    return values


def other_size(record: Record, shape: Sequence[int]) -> str:
    """What is wrong where a label map of ``shape`` (H, W) has not the size of its image, else ""."""
    size = _image_size(record.get("file_name"))
    if size is None or size == (shape[1], shape[0]):
        return ""
    return f"is {shape[1]} x {shape[0]}, its image {record['file_name']} is {size[0]} x {size[1]}"


def _image_size(path: Any) -> tuple[int, int] | None:
    """Width and height of an image after its EXIF rotation; None where another check says what is wrong with it."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return image.size[::-1] if turned else image.size
    except Exception:
        return None
