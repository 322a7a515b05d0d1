"""Features of the objects of a COCO json: each box is cut out and seen by a frozen network, once and for all."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dyn_d2.data.validity.coco import CocoContent, examine, read_json
from dyn_d2.modeling.backbone.timm_models import TimmModel
from dyn_d2.utils.atomic import atomic_write

from detectron2.data.detection_utils import read_image

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CropOptions:
    """How boxes become crops.

    Attributes:
        size: pixels of a crop's sides, whatever the shape of its box.
        context: what is added at each side, as a share of the box's width and height.
        least: pixels of the shorter side of boxes that are taken.
        batch: crops at a time.
    """

    size: int = 224
    context: float = 0.1
    least: float = 8.0
    batch: int = 32


def cut(image: np.ndarray, box: Sequence[float], options: CropOptions) -> np.ndarray:
    """One crop (size, size, 3), with the context that lies inside the image.

    Args:
        image: (H, W, 3) of 0 to 255.
        box: left, top, width, height.
    """
    left, top, width, height = box
    dx, dy = options.context * width, options.context * height
    frame = (
        max(0.0, left - dx),
        max(0.0, top - dy),
        min(float(image.shape[1]), left + width + dx),
        min(float(image.shape[0]), top + height + dy),
    )
    side = (options.size, options.size)
    return np.asarray(Image.fromarray(image).resize(side, Image.Resampling.BILINEAR, box=frame))


def objects_of(json_file: str | Path, least: float) -> tuple[CocoContent, list[dict]]:
    """The content of a COCO json, and its objects that are no crowds and not too small, in the order of their images.

    Raises:
        DataError: the file is none.
        ValueError: it has no such object.
    """
    found = examine(read_json(json_file), str(json_file), masks=False).require()
    objects = [a for a in found.annotations if not a["iscrowd"] and min(a["bbox"][2:]) >= least]
    if not objects:
        raise ValueError(f"{json_file} has no object of {least:g} pixels or more that is no crowd: lower --least.")
    place = {number: i for i, number in enumerate(found.images)}
    return found, sorted(objects, key=lambda a: place[a["image_id"]])


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
        images: the folder of the images.

    Raises:
        ValueError, FileNotFoundError: as of ``objects_of`` and of reading an image.
    """
    found, objects = objects_of(json_file, options.least)
    rows: list[np.ndarray] = []
    crops: list[np.ndarray] = []
    name, image = "", np.zeros((0, 0, 3), np.uint8)
    for number, item in enumerate(objects, 1):
        file = found.images[item["image_id"]]["file_name"]
        if file != name:
            name, image = file, read_image(str(Path(images) / file), "RGB")
        crops.append(cut(image, item["bbox"], options))
        if len(crops) == options.batch or number == len(objects):
            rows.append(features_of(model, crops))
            crops = []
            if len(rows) % 50 == 0:
                logger.info(f"{number} of {len(objects)} objects")
    return {
        "features": np.concatenate(rows),
        "labels": np.array([found.names[item["category_id"]] for item in objects]),
        "images": np.array([found.images[item["image_id"]]["file_name"] for item in objects]),
        "boxes": np.array([item["bbox"] for item in objects], np.float32),
    }


def write_crops(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an .npz as a whole or not at all."""
    with atomic_write(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
