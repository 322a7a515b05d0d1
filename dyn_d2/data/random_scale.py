"""The augmentation of DeepLab (Chen et al. 2018) and its followers: resize by a random factor, crop, mirror."""

import random

import numpy as np

from detectron2.data import transforms as T


class RandomScale(T.Augmentation):
    """Resize an image by a factor drawn evenly from a range."""

    def __init__(self, low: float, high: float) -> None:
        """
        Raises:
            ValueError: no range of positive numbers.
        """
        super().__init__()
        if not 0 < low <= high:
            raise ValueError(f"INPUT.RANDOM_SCALE is [{low}, {high}]: use two factors above 0, the smaller one first.")
        self.low, self.high = low, high

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        factor = random.uniform(self.low, self.high)
        return T.ResizeTransform(height, width, max(1, round(height * factor)), max(1, round(width * factor)))


def scale_crop_flip(cfg) -> list[T.Augmentation]:
    """The augmentations of INPUT.{RANDOM_SCALE, CROP, RANDOM_FLIP}, in this order.

    Raises:
        ValueError: RANDOM_SCALE is no range.
    """
    if len(cfg.INPUT.RANDOM_SCALE) != 2:
        raise ValueError(f"INPUT.RANDOM_SCALE is {list(cfg.INPUT.RANDOM_SCALE)}: use [smallest, largest factor].")
    steps: list[T.Augmentation] = [RandomScale(*cfg.INPUT.RANDOM_SCALE)]
    if cfg.INPUT.CROP.ENABLED:
        steps.append(T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    if cfg.INPUT.RANDOM_FLIP != "none":
        vertical = cfg.INPUT.RANDOM_FLIP == "vertical"
        steps.append(T.RandomFlip(horizontal=not vertical, vertical=vertical))
    return steps
