"""From a classification record to the input of ImageClassifier."""

import io
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision import transforms

from dyn_d2.data.pixel_changes import PixelChanges

from detectron2.config import configurable
from detectron2.data.detection_utils import read_image


def decode(record: dict[str, Any]) -> np.ndarray:
    """The (H, W, 3) uint8 RGB image of a record.

    Raises:
        OSError: it cannot be read, or has another shape or type.
    """
    if "image" not in record:
        return np.asarray(read_image(record["file_name"], format="RGB"))
    image = record["image"]
    if isinstance(image, bytes) or image.ndim == 1:
        try:
            image = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
        except (OSError, SyntaxError, UnidentifiedImageError) as error:
            raise OSError(f"image {record.get('image_id')} cannot be decoded: it is damaged") from error
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise OSError(f"an array of {image.dtype} and shape {image.shape} is no (H, W, 3) image of uint8")
    return image


class ClassificationMapper:
    """Decodes, augments and turns into a tensor.

    Draws from Python's and torch's generators, so that it depends on nothing else when those are seeded.

    Attributes:
        unlimited: keys of the augmentations that make more views of an image than can be counted.
        flips: whether every other image is mirrored.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        pad_crop: int = 0,
        random_resized_crop: int = 0,
        scale: tuple[float, float] = (0.08, 1.0),
        flip: bool = False,
        color: float = 0.0,
        resize_test: int = 0,
        crop_test: int = 0,
        image_format: str = "RGB",
        changes: Sequence[str] = (),
    ) -> None:
        """
        Args:
            is_train: augment; otherwise only ``resize_test`` and ``crop_test`` apply.
            pad_crop: black pixels put on each side before a window of the old size is cut out at random.
            random_resized_crop: size of the square to which a random window (share of the area in ``scale``, sides 3:4
                to 4:3) is resized; 0 for no such window.
            flip: mirror every other image.
            color: change brightness, contrast and saturation by up to this share.
            resize_test: length of the shorter side.
            crop_test: size of the square that is cut out of the middle after that.
            image_format: "RGB" or "BGR", order of the channels of the result.
            changes: transforms of albumentations, before all others; see ``pixel_changes``.

        Raises:
            ValueError: another ``image_format``.
        """
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {image_format!r}: images for classification are RGB or BGR.")
        self._pad = pad_crop if is_train else 0
        self.flips = flip and is_train
        self._reverse = image_format == "BGR"
        self._changes = PixelChanges(changes) if changes and is_train else None
        drawn = {
            "INPUT.CLASSIFICATION.PAD_CROP": pad_crop,
            "INPUT.CLASSIFICATION.RANDOM_RESIZED_CROP": random_resized_crop,
            "INPUT.CLASSIFICATION.COLOR": color,
            "INPUT.ALBUMENTATIONS": changes,
        }
        self.unlimited = [key for key, value in drawn.items() if value] if is_train else []
        steps: list[Any] = []
        if is_train:
            if random_resized_crop:
                steps.append(transforms.RandomResizedCrop(random_resized_crop, tuple(scale)))
            if color:
                steps.append(transforms.ColorJitter(color, color, color))
        else:
            steps += [transforms.Resize(resize_test)] if resize_test else []
            steps += [transforms.CenterCrop(crop_test)] if crop_test else []
        self._pil_steps = transforms.Compose(steps) if steps else None

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict[str, Any]:
        keys = cfg.INPUT.CLASSIFICATION
        return {
            "is_train": is_train,
            "pad_crop": keys.PAD_CROP,
            "random_resized_crop": keys.RANDOM_RESIZED_CROP,
            "scale": keys.SCALE,
            "flip": keys.FLIP,
            "color": keys.COLOR,
            "resize_test": keys.RESIZE_TEST,
            "crop_test": keys.CROP_TEST,
            "image_format": cfg.INPUT.FORMAT,
            "changes": list(cfg.INPUT.ALBUMENTATIONS) if is_train else [],
        }

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """
        Returns:
            "image", a (3, H, W) uint8 tensor; "height" and "width" of the image before augmentation; "label",
            "image_id" and "file_name" as in the record.

        Raises:
            OSError: the image cannot be read.
        """
        pixels = decode(record)
        size = pixels.shape[:2]
        if self._changes is not None:
            pixels = self._changes.get_transform(pixels).apply_image(pixels)
        if self._pil_steps is not None:
            pixels = np.asarray(self._pil_steps(Image.fromarray(pixels)))
        if self._pad:
            pixels = shifted(pixels, random.randint(-self._pad, self._pad), random.randint(-self._pad, self._pad))
        return self._input(record, pixels, size, self.draw_flip())

    def draw_flip(self) -> bool:
        """Whether the next image is mirrored; the last that a call draws."""
        return self.flips and random.random() < 0.5

    def view(self, record: dict[str, Any], flipped: bool) -> dict[str, Any]:
        """What a call gives where nothing is ``unlimited`` and ``draw_flip`` says ``flipped``."""
        pixels = decode(record)
        return self._input(record, pixels, pixels.shape[:2], flipped)

    def _input(
        self, record: dict[str, Any], pixels: np.ndarray, size: tuple[int, ...], flipped: bool
    ) -> dict[str, Any]:
        mapped = described(record)
        mapped["height"], mapped["width"] = size
        if flipped:
            pixels = pixels[:, ::-1]
        if self._reverse:
            pixels = pixels[:, :, ::-1]
        mapped["image"] = torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))  # a copy, records stay
        return mapped


def described(record: dict[str, Any]) -> dict[str, Any]:
    """What an input says of its record beside the pixels."""
    return {key: record[key] for key in ("label", "image_id", "file_name") if key in record}


def shifted(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """``image`` (H, W, C) moved within its frame; what comes in is black."""
    height, width, channels = image.shape
    border = max(abs(down), abs(right))
    padded = np.zeros((height + 2 * border, width + 2 * border, channels), image.dtype)
    padded[border : border + height, border : border + width] = image
    top, left = border - down, border - right
    return padded[top : top + height, left : left + width]
