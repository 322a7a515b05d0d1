"""Answers of classifiers, kept in a file, so that a threshold can be tried again without running a network again."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dyn_d2.data.fingerprint import records_hash
from dyn_d2.utils.atomic import atomic_write
from dyn_d2.utils.own_files import ARRAY_ERRORS, arrays_of

from .execution import IDKCascadeModel, run_alone
from .table import PredictionTable

logger = logging.getLogger(__name__)


def answers_of(
    models: Sequence[IDKCascadeModel], records: list[dict[str, Any]], path: Path, split: str
) -> PredictionTable:
    """The table of classifiers on labelled images; what ``path`` keeps of the same weights on the same images is taken
    from there, the rest is computed, 25 images at a time, and kept.

    Raises:
        ValueError: there is no image.
    """
    images = records_hash(records)
    kept = _read(path, images)
    outputs, losses, costs = [], [], []
    for model in models:
        key = f"{model.weights} {model.weights_hash()}"
        if key not in kept:
            logger.info(f"{model.name} answers {len(records)} images")
            alone = run_alone(model, records, 25)
            kept[key] = np.asarray(alone.answers, dtype=np.float64), alone.cost
            _write(path, images, kept)
        rows, cost = kept[key]
        outputs.append(rows)
        losses.append(model.losses(records, list(rows)))
        costs.append(cost)
    names = tuple(model.name for model in models)
    return PredictionTable(names, tuple(outputs), np.stack(losses), np.array(costs), split)


def _read(path: Path, images: str) -> dict[str, tuple[np.ndarray, float]]:
    """What is there of these images; a file that cannot be read keeps nothing."""
    if not path.exists():
        return {}
    try:
        with arrays_of(path, "answers of models") as file:
            if str(file["images"]) != images:
                return {}
            return {str(key): (file[f"rows{i}"], float(file["costs"][i])) for i, key in enumerate(file["keys"])}
    except ARRAY_ERRORS as error:
        logger.warning(f"{path} is written anew: it cannot be read ({error})")
        return {}


def _write(path: Path, images: str, kept: dict[str, tuple[np.ndarray, float]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {f"rows{i}": each for i, (each, _) in enumerate(kept.values())}
    with atomic_write(path, "wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            images=np.array(images),
            keys=np.array(list(kept)),
            costs=np.array([cost for _, cost in kept.values()]),
            **rows,
        )
