"""Checks of classification data before training."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dyn_d2.data.check_report import Problem, Report
from dyn_d2.data.validity.records import examine_labels
from dyn_d2.data.validity.values import identity, is_integer

from detectron2.data import DatasetCatalog, MetadataCatalog

from .mapper import decode
from .readers import Record
from .sets import ensure_classes, require_files


def check_classification(name: str, read_images: bool = True) -> Report:
    """Check a registered data set.

    Raises:
        FileNotFoundError: it is not there.
    """
    require_files(name)
    try:
        records = DatasetCatalog.get(name)
    except Exception as error:  # the loader may be anyone's; what it says is the problem
        report = Report(name)
        report.add("cannot_load", name, f"{type(error).__name__}: {error}")
        return report
    report = check_labels(records, name, read_images)
    if list_others := MetadataCatalog.get(name).get("list_others"):
        report.notes += list_others()
    times = Counter(identity(record.get("image_id")) for record in records if isinstance(record, dict))
    for image_id in [i for i, count in times.items() if count > 1 and i is not None]:
        report.add("duplicate_image", f"{name}, image {image_id!r}", "its id occurs twice", image_id)
    return report


def check_labels(records: Sequence[Record], name: str, read_images: bool = False) -> Report:
    """Check the records of a classification data set.

    Args:
        name: of the data set; its thing_classes give the range of the labels.
        read_images: decode every image; otherwise files are only looked for.
    """
    classes = ensure_classes(name)
    report = Report(name, images=len(records))
    report.problems += examine_labels(records, len(classes), name)
    records = [record for record in records if isinstance(record, dict)]
    labels = (record.get("label") for record in records)
    for label in labels:
        if is_integer(label) and 0 <= label < len(classes):
            report.count([(classes[label], False)])
    report.problems += check_images(records, name, read_images)
    return report.finish(classes)


def check_images(records: Sequence[Record], name: str, read_images: bool) -> list[Problem]:
    """Look whether image files are there and, with ``read_images``, whether all images can be decoded."""

    def look(record: Record) -> Problem | None:
        file, image_id = record.get("file_name"), record.get("image_id")
        if file is not None and not (isinstance(file, str) and Path(file).is_file()):
            return Problem("missing_image", str(file), "not found", image_id)
        if not read_images or not (file or "image" in record):
            return None
        try:
            decode(record)
        except Exception as error:  # decoders raise whatever they like; none of it is usable
            return Problem("unreadable_image", file or f"{name}, image {image_id}", f"{error}", image_id)
        return None

    with ThreadPoolExecutor() as pool:
        return [problem for problem in pool.map(look, records) if problem is not None]
