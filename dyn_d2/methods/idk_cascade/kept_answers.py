"""Answers of models, kept in a file, so that a threshold can be tried again without running a network again."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dyn_d2.data.fingerprint import records_hash
from dyn_d2.utils.atomic import atomic_write
from dyn_d2.utils.own_files import ARRAY_ERRORS, arrays_of

from detectron2.structures import Boxes, Instances

from .execution import IDKCascadeModel, run_alone
from .table import PredictionTable

logger = logging.getLogger(__name__)

AT_ONCE = 25
# Files of another one are written anew: 1 had no multiply-adds of attention on a CPU, and cropped what timm squashes.
_FORMAT = 2
Kept = dict[str, tuple[list[Any], float]]  # of a model: its answers, and their mean cost


def answers_of(
    models: Sequence[IDKCascadeModel], records: list[dict[str, Any]], path: Path, split: str
) -> PredictionTable:
    """The table of models on labelled images; what ``path`` keeps of the same weights on the same images is taken from
    there, the rest is computed, ``AT_ONCE`` images at a time, and kept. Detections with more than boxes are not kept.

    Raises:
        ValueError: there is no image.
    """
    images = f"{_FORMAT} {records_hash(records)}"
    kept = _read(path, images)
    outputs, losses, costs = [], [], []
    for model in models:
        key = f"{model.weights} {model.weights_hash()}"
        if key not in kept:
            logger.info(f"{model.name} answers {len(records)} images")
            alone = run_alone(model, records, AT_ONCE)
            kept[key] = list(alone.answers), alone.cost
            _write(path, images, kept)
        answers, cost = kept[key]
        outputs.append(np.asarray(answers, dtype=np.float64) if model.classifies else answers)
        losses.append(model.losses(records, answers))
        costs.append(cost)
    names = tuple(model.name for model in models)
    return PredictionTable(names, tuple(outputs), np.stack(losses), np.array(costs), split)


def _arrays(answers: list[Any]) -> dict[str, np.ndarray] | None:
    """Probabilities as one table, boxes as one list of all images; None where something would be lost."""
    if not isinstance(answers[0], dict):
        return {"rows": np.asarray(answers, dtype=np.float64)}
    found = [answer["instances"] for answer in answers]
    if any(set(each.get_fields()) != {"pred_boxes", "scores", "pred_classes"} for each in found):
        return None
    return {
        "counts": np.array([len(each) for each in found]),
        "sizes": np.array([each.image_size for each in found]),
        "boxes": np.concatenate([each.pred_boxes.tensor.numpy() for each in found]),
        "scores": np.concatenate([each.scores.numpy() for each in found]),
        "classes": np.concatenate([each.pred_classes.numpy() for each in found]),
    }


def _answers(arrays: dict[str, np.ndarray]) -> list[Any]:
    """The inverse of ``_arrays``."""
    if "rows" in arrays:
        return list(arrays["rows"])
    ends = np.cumsum(arrays["counts"])
    answers = []
    for size, end, count in zip(arrays["sizes"].tolist(), ends, arrays["counts"], strict=True):
        part = slice(end - count, end)
        found = Instances(tuple(size))
        found.pred_boxes = Boxes(torch.from_numpy(arrays["boxes"][part]))
        found.scores = torch.from_numpy(arrays["scores"][part])
        found.pred_classes = torch.from_numpy(arrays["classes"][part])
        answers.append({"instances": found})
    return answers


def _read(path: Path, images: str) -> Kept:
    """What is there of these images; a file that cannot be read keeps nothing."""
    if not path.exists():
        return {}
    try:
        with arrays_of(path, "answers of models") as file:
            if str(file["images"]) != images:
                return {}
            kept: Kept = {}
            for number, key in enumerate(file["keys"]):
                start = f"{number}."
                arrays = {name.removeprefix(start): file[name] for name in file.files if name.startswith(start)}
                kept[str(key)] = _answers(arrays), float(file["costs"][number])
            return kept
    except ARRAY_ERRORS as error:
        logger.warning(f"{path} is written anew: it cannot be read ({error})")
        return {}


def _write(path: Path, images: str, kept: Kept) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = {key: (arrays, cost) for key, (each, cost) in kept.items() if (arrays := _arrays(each)) is not None}
    named = {f"{i}.{name}": array for i, (arrays, _) in enumerate(written.values()) for name, array in arrays.items()}
    with atomic_write(path, "wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            images=np.array(images),
            keys=np.array(list(written), dtype=np.str_),
            costs=np.array([cost for _, cost in written.values()]),
            **named,
        )
