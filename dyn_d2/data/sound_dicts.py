"""Records of registered data sets as all loaders of dyn_d2 use them: Detectron2's, in the form in which nothing of them
can be taken in two ways."""

from collections.abc import Sequence
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.data.build import print_instances_class_histogram

from .registered import registered_records
from .validity.coco import DataError
from .validity.records import sound_records
from .validity.values import flag


def sound_dicts(names: Sequence[str], filter_empty: bool) -> list[dict[str, Any]]:
    """Detectron2's ``get_detection_dataset_dicts``, of records that ``sound_records`` has looked at.

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
    if not any("annotations" in record for record in records):
        return records
    classes, *others = [list(MetadataCatalog.get(name).get("thing_classes") or ()) for name in names]
    for name, other in zip(names[1:], others, strict=True):
        if other != classes:
            raise DataError(f"{names[0]} and {name} have different classes, and cannot be joined: {classes}, {other}.")
    records = sound_records(records, len(classes), ", ".join(names), one_set=len(names) == 1)
    kept = [record for record in records if has_objects(record)] if filter_empty else records
    if not kept:
        raise DataError(f"no image of {', '.join(names)} has an object: all annotations are missing or crowds.")
    print_instances_class_histogram([record for record in kept if "annotations" in record], classes)
    return kept


def has_objects(record: dict[str, Any]) -> bool:
    """Whether a record has an annotation that is no crowd, or is of another kind of data."""
    return "annotations" not in record or any(not flag(a.get("iscrowd")) for a in record["annotations"])
