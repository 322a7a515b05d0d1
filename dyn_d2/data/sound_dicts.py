"""Records of registered data sets as all loaders of dyn_d2 use them: Detectron2's, in the form in which nothing of them
can be taken in two ways."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

from detectron2.data import MetadataCatalog, get_detection_dataset_dicts

from .validity.coco import DataError
from .validity.records import sound_records
from .validity.values import flag


def sound_dicts(names: Sequence[str], filter_empty: bool) -> list[dict[str, Any]]:
    """``get_detection_dataset_dicts``, with records that ``sound_records`` has looked at.

    Args:
        names: of data sets with the same classes.
        filter_empty: leave out images without annotations, or with crowds only.

    Raises:
        DataError: a record is unusable, or nothing is left to train on.
    """
    found = get_detection_dataset_dicts(list(names), filter_empty=False)
    records = found if isinstance(found, list) else list(cast(Iterable[dict], found))  # a torch Dataset
    if not any("annotations" in record for record in records):
        return records
    classes = MetadataCatalog.get(names[0]).get("thing_classes") or ()
    records = sound_records(records, len(classes), ", ".join(names), one_set=len(names) == 1)
    kept = [record for record in records if has_objects(record)] if filter_empty else records
    if not kept:
        raise DataError(f"no image of {', '.join(names)} has an object: all annotations are missing or crowds.")
    return kept


def has_objects(record: dict[str, Any]) -> bool:
    """Whether a record has an annotation that is no crowd, or is of another kind of data."""
    return "annotations" not in record or any(not flag(a.get("iscrowd")) for a in record["annotations"])
