"""Whether what a predictor is given are images, before Pillow or torch stumble over it."""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor


def require_image(image: Any, name: str = "image") -> None:
    """
    Raises:
        ValueError: it is no (H, W, 3) array of uint8, or an empty one.
    """
    fits = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    if not fits or not image.size:
        empty = " without a pixel" if fits else ""
        raise ValueError(f"{name} is {_described(image)}{empty}: give an (H, W, 3) array of uint8, RGB.")


def require_images(images: Any) -> list[np.ndarray]:
    """The images of a batch as a list; an array (N, H, W, 3) is one too.

    Raises:
        ValueError: it is one image in place of a list, or one of the images is none, see ``require_image``.
    """
    # Most of these would be iterated over: an array by its rows, a path by its letters.
    single = isinstance(images, str | bytes | os.PathLike | Image.Image) or not isinstance(images, Iterable)
    if single or getattr(images, "ndim", 0) in (2, 3):
        raise ValueError(f"answer takes a list of images, not {_described(images)}: give [image] for one image.")
    batch = list(images)
    for number, image in enumerate(batch):
        require_image(image, "image" if len(batch) == 1 else f"image {number} of the batch")
    return batch


def _described(thing: Any) -> str:
    """What something is in place of an image: its type, and its shape where it has one."""
    if isinstance(thing, np.ndarray):
        return f"{thing.dtype} {thing.shape}"
    if isinstance(thing, Tensor):
        return f"a tensor of torch, {str(thing.dtype).removeprefix('torch.')} {tuple(thing.shape)}"
    if isinstance(thing, Image.Image):
        return f"an image of Pillow, {thing.mode} of {thing.width} x {thing.height}"
    if isinstance(thing, str | os.PathLike):
        return f"the path {os.fspath(thing)!r}"
    return f"of type {type(thing).__name__}"
