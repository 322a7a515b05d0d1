"""Transforms that fvcore does not have. Coordinates are (x, y) in pixels, not pixel indices: 0 <= x <= width."""

import random
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import NoOpTransform, Transform
from PIL import Image

_TORCH_MODE = {Image.BILINEAR: "bilinear", Image.BICUBIC: "bicubic", Image.NEAREST: "nearest"}


def _through_pil(img: np.ndarray, operation: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Apply ``operation`` to a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), keeping its number of axes."""
    single = img.ndim == 3 and img.shape[2] == 1
    result = np.asarray(operation(Image.fromarray(img[:, :, 0] if single else img)))
    return result[:, :, None] if single else result


class ResizeTransform(Transform):
    """Resize (h, w) to (new_h, new_w); uint8 through PIL (anti-aliased), other types through torch (not).

    Args:
        h, w: size of the input.
        new_h, new_w: size of the output.
        interp: a PIL resampling constant; None is bilinear. Segmentations always use the nearest pixel.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None):
        super().__init__()
        interp = Image.BILINEAR if interp is None else interp
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        if img.shape[:2] != (self.h, self.w):
            raise ValueError(f"ResizeTransform was made for an image of {(self.h, self.w)}, but got {img.shape[:2]}.")
        interp = self.interp if interp is None else interp
        if img.dtype == np.uint8:
            return _through_pil(img, lambda image: image.resize((self.new_w, self.new_h), interp))
        mode = _TORCH_MODE[interp]
        planes = torch.from_numpy(np.ascontiguousarray(img)).reshape(self.h, self.w, -1).permute(2, 0, 1)
        resized = F.interpolate(
            planes[None], (self.new_h, self.new_w), mode=mode, align_corners=None if mode == "nearest" else False
        )
        return resized[0].permute(1, 2, 0).reshape(self.new_h, self.new_w, *img.shape[2:]).numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords[:, 0] = coords[:, 0] * (self.new_w * 1.0 / self.w)
        coords[:, 1] = coords[:, 1] * (self.new_h * 1.0 / self.h)
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.NEAREST)

    def inverse(self) -> Transform:
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class ExtentTransform(Transform):
    """Cut the rectangle ``src_rect`` = (x0, y0, x1, y1) out of the image and scale it to ``output_size`` = (h, w).

    The rectangle may reach beyond the image; ``fill`` is the colour there.
    """

    def __init__(self, src_rect: tuple, output_size: tuple[int, int], interp: int = Image.BILINEAR, fill: int = 0):
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        size = self.output_size[::-1]
        resample = self.interp if interp is None else interp
        return _through_pil(
            img, lambda image: image.transform(size, Image.EXTENT, self.src_rect, resample, fill=self.fill)
        )

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        height, width = self.output_size
        x0, y0, x1, y1 = self.src_rect
        # Relative to the rectangle's centre, which becomes the centre of the output.
        moved = coords.astype(np.float32)
        moved -= np.array([0.5 * (x0 + x1), 0.5 * (y0 + y1)])
        moved *= np.array([width / (x1 - x0), height / (y1 - y0)])
        moved += np.array([0.5 * width, 0.5 * height])
        return moved

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.NEAREST)


class ColorTransform(Transform):
    """Apply ``op``, array to array, to the image; coordinates and segmentations stay as they are."""

    def __init__(self, op: Callable):
        if not callable(op):
            raise ValueError(f"{type(self).__name__} needs a function, got {op!r}.")
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self.op(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def inverse(self) -> Transform:
        return NoOpTransform()


class PILColorTransform(ColorTransform):
    """:class:`ColorTransform` whose ``op`` takes and returns a PIL image."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return np.asarray(self.op(Image.fromarray(img)))


class ColorAugSSDTransform(Transform):
    """The photometric distortion of SSD (arXiv:1512.02325): brightness, contrast, saturation, hue, each half the time.

    It draws from Python's ``random`` whenever an image passes, so it belongs in a list of augmentations only.
    Needs OpenCV for the conversion to hue, saturation and value; hue is in OpenCV's range [0, 180).

    Args:
        img_format: "BGR" or "RGB".
        brightness_delta: largest value added to or taken from all channels.
        contrast_low, contrast_high: range of the factor of all channels.
        saturation_low, saturation_high: range of the factor of the saturation.
        hue_delta: largest shift of the hue.
    """

    def __init__(
        self,
        img_format: str,
        brightness_delta: int = 32,
        contrast_low: float = 0.5,
        contrast_high: float = 1.5,
        saturation_low: float = 0.5,
        saturation_high: float = 1.5,
        hue_delta: int = 18,
    ):
        super().__init__()
        if img_format not in ("BGR", "RGB"):
            raise ValueError(f"ColorAugSSDTransform works on BGR or RGB images, not on {img_format!r}.")
        self.is_rgb = img_format == "RGB"
        self._set_attributes(locals())

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        order = [2, 1, 0] if self.is_rgb else [0, 1, 2]
        img = self._brightness(img[:, :, order])
        steps = [self._contrast, self._saturation, self._hue]
        for step in steps if random.randrange(2) else [*steps[1:], steps[0]]:
            img = step(img)
        return img[:, :, order]

    @staticmethod
    def _linear(img: np.ndarray, factor: float = 1, offset: float = 0) -> np.ndarray:
        return np.clip(img.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)

    @staticmethod
    def _in_hsv(img: np.ndarray, channel: int, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        import cv2

        hsv = cv2.cvtColor(img, cv2.COLOR_BGR2HSV)
        hsv[:, :, channel] = change(hsv[:, :, channel])
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)

    def _brightness(self, img: np.ndarray) -> np.ndarray:
        if not random.randrange(2):
            return img
        return self._linear(img, offset=random.uniform(-self.brightness_delta, self.brightness_delta))

    def _contrast(self, img: np.ndarray) -> np.ndarray:
        if not random.randrange(2):
            return img
        return self._linear(img, random.uniform(self.contrast_low, self.contrast_high))

    def _saturation(self, img: np.ndarray) -> np.ndarray:
        if not random.randrange(2):
            return img
        factor = random.uniform(self.saturation_low, self.saturation_high)
        return self._in_hsv(img, 1, lambda saturation: self._linear(saturation, factor))

    def _hue(self, img: np.ndarray) -> np.ndarray:
        if not random.randrange(2):
            return img
        shift = random.randint(-self.hue_delta, self.hue_delta)
        return self._in_hsv(img, 0, lambda hue: (hue.astype(int) + shift) % 180)
