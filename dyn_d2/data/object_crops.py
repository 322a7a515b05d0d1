"""Objects of a COCO json, cut out of their images."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from detectron2.data.detection_utils import read_image

from .validity.coco import CocoContent, examine, read_json


@dataclass(frozen=True)
class CropOptions:
    """How boxes become crops.

    Attributes:
        size: pixels of a crop's sides, whatever the shape of its box.
        context: what is added at each side, as a share of the box's width and height.
        least: pixels of the shorter side of boxes that are taken.
    """

    size: int = 224
    context: float = 0.1
    least: float = 8.0


class Crop(NamedTuple):
    """An object.

    Attributes:
        pixels: (size, size, 3) uint8, RGB.
        name: of its class.
        file: the name of its image.
        annotation: of the json.
    """

    pixels: np.ndarray
    name: str
    file: str
    annotation: dict[str, Any]


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


def crops_of(json_file: str | Path, images: str | Path, options: CropOptions) -> Iterator[Crop]:
    """All crops of ``objects_of``; each image is read once.

    Args:
        images: the folder of the images.

    Raises:
        ValueError, FileNotFoundError: as of ``objects_of`` and of reading an image; a box lies outside of its image.
    """
    found, objects = objects_of(json_file, options.least)
    file, image = "", np.zeros((0, 0, 3), np.uint8)
    for annotation in objects:
        wanted = found.images[annotation["image_id"]]["file_name"]
        if wanted != file:
            file, image = wanted, read_image(str(Path(images) / wanted), "RGB")
        left, top, width, height = annotation["bbox"]
        if left + width <= 0 or top + height <= 0 or left >= image.shape[1] or top >= image.shape[0]:
            raise ValueError(
                f"{json_file}: the box of annotation {annotation['id']} lies outside of {file}, which has "
                f"{image.shape[1]} x {image.shape[0]} pixels: dyn-d2 check-data lists such boxes."
            )
        yield Crop(cut(image, annotation["bbox"], options), found.names[annotation["category_id"]], file, annotation)


def add_crop_options(parser: argparse.ArgumentParser) -> None:
    """--json, --images and how boxes become crops; see ``crop_options``."""
    default = CropOptions()
    parser.add_argument("--json", required=True, help="boxes in COCO's format")
    parser.add_argument("--images", required=True, help="the folder of its images")
    parser.add_argument("--size", type=int, default=default.size, help="pixels of a crop (default: %(default)s)")
    context = "what a crop shows around its box, as a share of its sides (default: %(default)s)"
    parser.add_argument("--context", type=float, default=default.context, help=context)
    least = "pixels of the shorter side of a box (default: %(default)s)"
    parser.add_argument("--least", type=float, default=default.least, help=least)


def crop_options(args: argparse.Namespace, parser: argparse.ArgumentParser) -> CropOptions:
    """What was given; a wrong number ends the program with its usage."""
    if args.size < 1 or args.context < 0 or args.least <= 0:
        parser.error("--size has to be at least 1, --context at least 0, --least above 0")
    return CropOptions(args.size, args.context, args.least)
