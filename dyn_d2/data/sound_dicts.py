"""Records of registered data sets as all loaders of dyn_d2 use them: Detectron2's, in the form in which nothing of them
can be taken in two ways."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, cast

from torch.utils.data import Dataset

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import check_metadata_consistency, print_instances_class_histogram

from .validity.coco import DataError, refuse
from .validity.records import examine_labels, examine_maps, sound_records
from .validity.values import flag


def sound_dicts(names: Sequence[str], filter_empty: bool) -> list[dict[str, Any]]:
    """Records as of Detectron2's ``get_detection_dataset_dicts``, which ``sound_records`` has looked at first.

    Args:
        names: of data sets with the same classes.
        filter_empty: leave out images without annotations, or with crowds only.

    Raises:
        DataError: a record is unusable, or nothing is left to train on.
        ValueError: the sets have different classes.
    """
    found = [DatasetCatalog.get(name) for name in names]
    records = list(chain.from_iterable(_as_list(name, given) for name, given in zip(names, found, strict=True)))
    classes, title = MetadataCatalog.get(names[0]).get("thing_classes") or (), ", ".join(names)
    _check_labels(records, names, len(classes))
    annotated = any(isinstance(record, dict) and "annotations" in record for record in records)
    if not annotated and all(isinstance(record, dict) for record in records):
        return records
    records = sound_records(records, len(classes), title, one_set=len(names) == 1)
    records = [{"annotations": [], **record} for record in records]  # an image without is one without objects
    if classes:
        check_metadata_consistency("thing_classes", list(names))
        print_instances_class_histogram(records, list(classes))
    kept = [record for record in records if has_objects(record)] if filter_empty else records
    if not kept:
        raise DataError(f"no image of {title} has an object: all annotations are missing or crowds.")
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


def _as_list(name: str, given: Any) -> list[Any]:
    """What a data set's function returned: a list, or a torch Dataset of records.

    Raises:
        DataError: something else, or nothing.
    """
    if not isinstance(given, list | tuple | Dataset):
        raise DataError(f"the function that {name} is registered with returns {type(given).__name__}, not a list.")
    records = list(cast(Iterable[Any], given))
    if not records:
        raise DataError(f"data set {name} has no image.")
    return records


def has_objects(record: dict[str, Any]) -> bool:
    """Whether a record has an annotation that is no crowd, or is of another kind of data."""
    return "annotations" not in record or any(not flag(a.get("iscrowd")) for a in record["annotations"])
