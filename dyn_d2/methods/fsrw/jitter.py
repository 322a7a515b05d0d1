"""DarkNet's augmentation, which YOLOv2 and FSRW train with: a crop whose sides move, then hue, saturation, exposure."""

import random
from collections.abc import Callable

import numpy as np
from fvcore.transforms.transform import PadTransform, Transform
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

from detectron2.config import CfgNode
from detectron2.data import transforms as T


class JitterCrop(T.Augmentation):
    """Move each side of the image inwards or outwards by a share of its length, drawn evenly from 0 to ``amount``: from
    ``1 - 2 * amount`` to ``1 + 2 * amount`` of it are left. What comes in from outside is black.
    """

    def __init__(self, amount: float) -> None:
        """
        Raises:
            ValueError: less than half of the image would be left at worst, or none.
        """
        super().__init__()
        if not 0 <= amount < 0.5:
            raise ValueError(f"INPUT.JITTER.CROP is {amount}: use 0 or more, and less than 0.5.")
        self.amount = amount

    def get_transform(self, image: np.ndarray) -> T.TransformList:
        height, width = image.shape[:2]
        left, right = (int(width * random.uniform(-self.amount, self.amount)) for _ in range(2))
        top, bottom = (int(height * random.uniform(-self.amount, self.amount)) for _ in range(2))
        around = [max(0, -side) for side in (left, top, right, bottom)]
        pad = PadTransform(*around, width, height, 0)
        window = max(1, width - left - right), max(1, height - top - bottom)
        return T.TransformList([pad, T.CropTransform(max(0, left), max(0, top), *window)])


class _OfPixels(Transform):
    """Changes colours and no places."""

    def __init__(self, change: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__()
        self._change = change

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self._change(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation


class JitterColour(T.Augmentation):
    """Turn the hue, and multiply or divide saturation and value, of images of 8 bits."""

    def __init__(self, hue: float, saturation: float, exposure: float, bgr: bool = False) -> None:
        """
        Args:
            hue: turned by up to this share of the circle, to either side.
            saturation, exposure: multiplied by a number drawn from 1 to these, or divided by it.
            bgr: the order of the channels.

        Raises:
            ValueError: a factor is below 1, or the hue outside of [0, 0.5].
        """
        super().__init__()
        if min(saturation, exposure) < 1 or not 0 <= hue <= 0.5:
            raise ValueError(
                f"INPUT.JITTER has HUE {hue}, SATURATION {saturation}, EXPOSURE {exposure}: use a hue within 0 and "
                "0.5, and factors of 1 or more."
            )
        self.hue, self.saturation, self.exposure, self.bgr = hue, saturation, exposure, bgr

    def get_transform(self, image: np.ndarray) -> T.Transform:
        turn = random.uniform(-self.hue, self.hue)
        factors = np.array([_factor(self.saturation), _factor(self.exposure)])

        def change(picture: np.ndarray) -> np.ndarray:
            rgb = picture[:, :, ::-1] if self.bgr else picture
            hsv = rgb_to_hsv(np.clip(rgb, 0, 255) / 255.0)
            hsv[..., 0] = (hsv[..., 0] + turn) % 1.0
            hsv[..., 1:] = np.clip(hsv[..., 1:] * factors, 0, 1)
            out = (hsv_to_rgb(hsv) * 255.0).round().astype(picture.dtype)
            return out[:, :, ::-1] if self.bgr else out

        return _OfPixels(change)


def _factor(largest: float) -> float:
    factor = random.uniform(1, largest)
    return factor if random.random() < 0.5 else 1 / factor


def jitters(cfg: CfgNode) -> list[T.Augmentation]:
    """The augmentations of INPUT.JITTER; [] where it changes nothing."""
    keys = cfg.INPUT.JITTER
    steps: list[T.Augmentation] = [JitterCrop(keys.CROP)] if keys.CROP else []
    if keys.HUE or keys.SATURATION != 1 or keys.EXPOSURE != 1:
        steps.append(JitterColour(keys.HUE, keys.SATURATION, keys.EXPOSURE, bgr=cfg.INPUT.FORMAT == "BGR"))
    return steps


def squashing(cfg: CfgNode) -> list[T.Augmentation]:
    """What makes queries and supports the same picture where MODEL.YOLO.CACHE keeps features by picture: both become
    the square that the detector sees here already, before they are mirrored; [] elsewhere."""
    keys = cfg.MODEL.YOLO
    return [T.Resize((keys.SIZE, keys.SIZE))] if keys.CACHE and not keys.TRAIN_SIZES else []
