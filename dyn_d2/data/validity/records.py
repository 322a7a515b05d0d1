"""Records in Detectron2's format that Python code registered: what is wrong with them, and their sound form."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from dyn_d2.data.check_report import Problem

from . import rle
from .annotation import XYWH, annotation_area, box_defect, crowd_defect, empty_mask, flagged_mask_defect
from .coco import is_masked, refuse
from .consumers import LOADER, spoils
from .values import LONGEST_SIDE, brief, flag, identity, is_integer, size, whole

Record = dict[str, Any]


def examine_records(records: Iterable[Any], classes: int, title: str) -> Iterator[Problem]:
    """The problems of records, one by one.

    Args:
        records: dicts; those without "annotations" are looked at as images only.
        classes: their number, which limits "category_id".
        title: of the data set.
    """
    types: Counter = Counter()
    for position, record in enumerate(records):
        if not isinstance(record, dict):
            yield Problem("bad_entry", f"{title}, record {position}", f"is {brief(record)}, not a dict")
            continue
        name, image_id = record.get("file_name"), identity(record.get("image_id"))
        where = f"{title}, {name if isinstance(name, str) else f'record {position}'}"
        if not isinstance(name, str) or image_id is None:
            what = "the record has no file_name or no image_id" if name is None or record.get("image_id") is None else (
                f"file_name is {brief(name)} and image_id {brief(record.get('image_id'))}"
            )  # fmt: skip
            yield Problem("bad_entry", where, what, image_id)
        types[type(image_id)] += image_id is not None
        sides = tuple(record.get(side) for side in ("width", "height"))
        if any(side is not None and size(side) is None for side in sides):
            yield Problem(
                "bad_entry",
                where,
                f"width and height are {brief(sides)}, not positive integers up to {LONGEST_SIDE}",
                image_id,
            )
            sides = (None, None)
        yield from _of_annotations(record, image_id, classes, where, (size(sides[0]), size(sides[1])))
    if min(types[int], types[str]):
        what = f"the image_id is a number in {types[int]} records and a text in {types[str]}"
        yield Problem("mixed_ids", title, what)


def _of_annotations(
    record: Record, image_id: Any, classes: int, where: str, sides: tuple[int | None, int | None]
) -> Iterator[Problem]:
    annotations = record.get("annotations", [])
    if not isinstance(annotations, list | tuple) or not all(isinstance(a, dict) for a in annotations):
        yield Problem("bad_entry", where, f"annotations are {brief(annotations)}, not a list of dicts", image_id)
        return
    for number, annotation in enumerate(annotations):
        given = annotation.get("id", number)
        place = f"{where}, annotation {brief(given)}"
        category = annotation.get("category_id")
        if not is_integer(category) or not 0 <= category < classes:
            what = f"category_id {brief(category)} is not in 0 .. {classes - 1}"
            what += " (do the ids start at 1?)" if is_integer(category) and category == classes else ""
            yield Problem("category_range", place, what, image_id, given)
        for defect in (
            box_defect(annotation.get("bbox"), annotation.get("bbox_mode"), *sides),
            crowd_defect(annotation),
            flagged_mask_defect(annotation, *sides)
            or (empty_mask(annotation["segmentation"]) if is_masked(annotation) else None),
        ):
            if defect:
                yield Problem(defect[0], place, defect[1], image_id, given)


def examine_labels(records: Iterable[Any], classes: int, title: str) -> Iterator[Problem]:
    """The problems of records with one label each, of image classification; see :func:`examine_records`."""
    for position, record in enumerate(records):
        if not isinstance(record, dict):
            yield Problem("bad_entry", f"{title}, record {position}", f"is {brief(record)}, not a dict")
            continue
        name, image_id, label = record.get("file_name"), identity(record.get("image_id")), record.get("label")
        where = f"{title}, {name if isinstance(name, str) else f'image {position}'}"
        if image_id is None or not {"image", "file_name", "feature"} & record.keys():
            what = "the record has no image_id, or no image, file_name or feature"
            yield Problem("bad_entry", where, what, image_id)
        if name is not None and not isinstance(name, str):
            yield Problem("bad_entry", where, f"file_name is {brief(name)}, not a text", image_id)
        if not is_integer(label) or not 0 <= label < classes:
            yield Problem("label_range", where, f"label {brief(label)} is not in 0 .. {classes - 1}", image_id)


def examine_maps(records: Iterable[Any], title: str) -> Iterator[Problem]:
    """The problems of records with a label map each, but for what is in the files; none where no record has one."""
    records = list(records)
    mapped = any(isinstance(record, dict) and "sem_seg_file_name" in record for record in records)
    for position, record in enumerate(records if mapped else ()):
        if not isinstance(record, dict):
            yield Problem("bad_entry", f"{title}, record {position}", f"is {brief(record)}, not a dict")
            continue
        for key in ("file_name", "sem_seg_file_name"):
            if not isinstance(record.get(key), str) or not record[key]:
                yield Problem(
                    "bad_entry", f"{title}, record {position}", f'"{key}" is {brief(record.get(key))}, no path'
                )


def sound_records(records: Iterable[Any], classes: int, title: str, one_set: bool = True) -> list[Record]:
    """Copies of records that all readers take alike: boxes are lists of floats, sizes integers, flags 0 or 1.

    Detectron2's transforms cut the coordinates of boxes that are given as integers, and its mapper takes an "iscrowd"
    of None for a crowd.

    Args:
        records, classes, title: see :func:`examine_records`.
        one_set: the ids of images have to be of one type, as evaluation needs it; those of several sets need not.

    Raises:
        DataError: some are unusable; lists them.
    """
    records = list(records)
    problems = [p for p in examine_records(records, classes, title) if spoils(p.kind, (LOADER,))]
    refuse([p for p in problems if one_set or p.kind != "mixed_ids"], title)
    return [_sound(record) for record in records]


def _sound(record: Record) -> Record:
    result = {**record, **{side: whole(record[side]) for side in ("width", "height") if record.get(side) is not None}}
    if "annotations" in record:
        result["annotations"] = [_sound_annotation(annotation) for annotation in record["annotations"]]
    return result


def _sound_annotation(annotation: Record) -> Record:
    result = {**annotation, "bbox": [float(side) for side in annotation["bbox"]]}
    if "iscrowd" in annotation:
        result["iscrowd"] = flag(annotation["iscrowd"])
    if "segmentation" in annotation and not is_masked(annotation):
        del result["segmentation"]
    return result


def as_coco(records: Iterable[Record], classes: Sequence[str], title: str, ids: Sequence[int] = ()) -> dict[str, Any]:
    """Records as the content of a COCO json, for COCO's evaluation.

    Args:
        classes: their names.
        ids: the category id of each class; by default its position.

    Raises:
        DataError: a record is unusable, or has no size.
    """
    records = sound_records(records, len(classes), title)
    numbers = list(ids) or list(range(len(classes)))
    images: list[Record] = []
    annotations: list[Record] = []
    unsized = [
        Problem("bad_entry", f"{title}, {r['file_name']}", "has no width and height, which evaluation needs")
        for r in records
        if r.get("width") is None or r.get("height") is None
    ]
    refuse(unsized, title)
    for record in records:
        image_id = identity(record["image_id"])
        sides = {side: record[side] for side in ("width", "height")}
        images.append({"id": image_id, "file_name": record["file_name"], **sides})
        for annotation in record.get("annotations", ()):
            x0, y0, a, b = annotation["bbox"]
            box = [x0, y0, a, b] if annotation["bbox_mode"] == XYWH else [x0, y0, a - x0, b - y0]
            entry = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": numbers[int(annotation["category_id"])],
                "bbox": box,
                "iscrowd": annotation.get("iscrowd", 0),
            }
            if is_masked(annotation):
                entry["segmentation"] = _plain_mask(annotation["segmentation"])
            annotations.append(entry | {"area": annotation_area(entry, sides["height"], sides["width"])})
    categories = [{"id": number, "name": name} for number, name in zip(numbers, classes, strict=True)]
    content = {"images": images, "categories": categories}
    return content | ({"annotations": annotations} if any("annotations" in record for record in records) else {})


def _plain_mask(mask: Any) -> Any:
    """A segmentation in types that json has; what is no mask stays what it is."""
    if isinstance(mask, dict):
        try:
            lengths = rle.run_lengths(mask)
        except rle.RleError:
            return {key: part.decode("latin1") if isinstance(part, bytes) else part for key, part in mask.items()}
        return {"size": [int(side) for side in mask["size"]], "counts": rle.compress(lengths)}
    if not isinstance(mask, list | tuple):
        return mask
    return [np.asarray(p).tolist() if isinstance(p, np.ndarray | list | tuple) else p for p in mask]
