"""Features of the objects of a COCO json: each box is cut out and seen by a frozen network, once and for all."""

import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from dyn_d2.data.object_crops import CropOptions, crops_of
from dyn_d2.modeling.backbone.timm_models import TimmModel
from dyn_d2.utils.atomic import atomic_write

logger = logging.getLogger(__name__)

BATCH = 32  # crops at a time


def features_of(model: TimmModel, crops: Sequence[np.ndarray]) -> np.ndarray:
    """What a model from ``build_pooled_model`` sees in crops of one size: (N, D) float16."""
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (model.mean, model.std))
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        return model.module((pixels - mean) / std).numpy().astype(np.float16)


def crop_features(
    model: TimmModel, json_file: str | Path, images: str | Path, options: CropOptions
) -> dict[str, np.ndarray]:
    """What ``ZERO_SHOT.CUSTOM`` reads: "features" (N, D) float16, "labels" (N,) names, "images" (N,) the file names
    that say which crops belong together, "boxes" (N, 4).

    Args:
        model: from ``build_pooled_model``.

    Other arguments and errors are those of ``crops_of``.
    """
    remaining = crops_of(json_file, images, options)
    features, labels, files, boxes = [], [], [], []
    while crops := list(islice(remaining, BATCH)):
        features.append(features_of(model, [crop.pixels for crop in crops]))
        labels += [crop.name for crop in crops]
        files += [crop.file for crop in crops]
        boxes += [crop.annotation["bbox"] for crop in crops]
        if len(features) % 50 == 0:
            logger.info(f"{len(labels)} objects")
    return {
        "features": np.concatenate(features),
        "labels": np.array(labels),
        "images": np.array(files),
        "boxes": np.array(boxes, np.float32),
    }


def write_crops(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an .npz as a whole or not at all."""
    with atomic_write(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
