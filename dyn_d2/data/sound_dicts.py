"""Records of registered data sets as all loaders of dyn_d2 use them: Detectron2's, in the form in which nothing of them
can be taken in two ways."""

from collections.abc import Sequence
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.data.build import print_instances_class_histogram

from .registered import registered_records
from .validity.coco import DataError, refuse
from .validity.records import examine_labels, examine_maps, sound_records
from .validity.values import flag


def sound_dicts(names: Sequence[str], filter_empty: bool) -> list[dict[str, Any]]:
    """Detectron2's ``get_detection_dataset_dicts``, of records that were looked at first.

    Args:
        names: of data sets with the same classes.
        filter_empty: leave out images without annotations, or with crowds only.

    Raises:
        DataError: a record is unusable, nothing is left to train on, or the data sets have different classes.
    """
    of_set = {name: registered_records(name) for name in names}
    empty = [name for name, records in of_set.items() if not records]
    if empty:
        raise DataError(f"the data set {', '.join(empty)} is empty: it has no image.")
    records = [record for name in names for record in of_set[name]]
    classes, *others = [list(MetadataCatalog.get(name).get("thing_classes") or ()) for name in names]
    _check_labels(records, names, len(classes))
    annotated = any(isinstance(record, dict) and "annotations" in record for record in records)
    if not annotated and all(isinstance(record, dict) for record in records):
        return records
    for name, other in zip(names[1:], others, strict=True):
        if other != classes:
            raise DataError(f"{names[0]} and {name} have different classes, and cannot be joined: {classes}, {other}.")
    records = sound_records(records, len(classes), ", ".join(names), one_set=len(names) == 1)
    records = [{"annotations": [], **record} for record in records]  # an image without is one without objects
    kept = [record for record in records if has_objects(record)] if filter_empty else records
    if not kept:
        raise DataError(f"no image of {', '.join(names)} has an object: all annotations are missing or crowds.")
    print_instances_class_histogram(kept, classes)
    return kept


def _check_labels(records: list[Any], names: Sequence[str], classes: int) -> None:
    """
    Raises:
        DataError: the sets have labels of images, or label maps, and a record has none.
    """
    title = ", ".join(names)
    if MetadataCatalog.get(names[0]).get("evaluator_type") == "classification":
        refuse(examine_labels(records, classes, title), title)
    refuse(examine_maps(records, title), title)


def has_objects(record: dict[str, Any]) -> bool:
    """Whether a record has an annotation that is no crowd, or is of another kind of data."""
    return "annotations" not in record or any(not flag(a.get("iscrowd")) for a in record["annotations"])
