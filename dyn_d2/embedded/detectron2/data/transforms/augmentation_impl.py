"""The augmentations that configs and projects use. Sizes are (height, width) unless said otherwise."""

import sys
from typing import Any

import numpy as np
from fvcore.transforms.transform import (
    BlendTransform,
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    Transform,
    TransformList,
    VFlipTransform,
)
from PIL import Image

from .augmentation import Augmentation, _transform_to_aug
from .transform import ResizeTransform


def _check_choice(owner: Augmentation, name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{type(owner).__name__}: {name}={value!r} is not one of {', '.join(allowed)}.")


class RandomApply(Augmentation):
    """Apply ``tfm_or_aug`` with probability ``prob``."""

    def __init__(self, tfm_or_aug: Transform | Augmentation, prob: float = 0.5):
        if not 0 <= prob <= 1:
            raise ValueError(f"RandomApply: prob={prob} is no probability.")
        self.aug = _transform_to_aug(tfm_or_aug)
        self.prob = prob

    def get_transform(self, *args: Any) -> Transform:
        return self.aug.get_transform(*args) if self._rand_range() < self.prob else NoOpTransform()

    def __call__(self, aug_input: Any) -> Transform:
        # Called rather than asked for a transform: the inner augmentation may read more than the image.
        return self.aug(aug_input) if self._rand_range() < self.prob else NoOpTransform()


class RandomFlip(Augmentation):
    """Flip with probability ``prob``, either horizontally or vertically; use two of them for both."""

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False):
        if horizontal == vertical:
            raise ValueError("RandomFlip: exactly one of horizontal and vertical has to be True; combine two for both.")
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(image.shape[1]) if self.horizontal else VFlipTransform(image.shape[0])


class Resize(Augmentation):
    """Resize to ``shape``, (h, w) or one number for both, whatever the aspect ratio."""

    def __init__(self, shape: int | tuple[int, int], interp: int = Image.BILINEAR):
        shape = (shape, shape) if isinstance(shape, int) else tuple(shape)
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        return ResizeTransform(*image.shape[:2], *self.shape, self.interp)


class ResizeShortestEdge(Augmentation):
    """Scale the shorter edge to a drawn length, or less where the longer edge would exceed ``max_size``.

    Args:
        short_edge_length: [min, max] for ``sample_style`` "range" (both included), the lengths to choose from for
            "choice", or a single number. Length 0 leaves the image as it is.
        max_size: limit of the longer edge.
    """

    def __init__(
        self,
        short_edge_length: int | list[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = Image.BILINEAR,
    ):
        _check_choice(self, "sample_style", sample_style, ("range", "choice"))
        if isinstance(short_edge_length, int):
            short_edge_length = (short_edge_length, short_edge_length)
        self.is_range = sample_style == "range"
        if self.is_range and len(short_edge_length) != 2:
            raise ValueError(f"ResizeShortestEdge: 'range' needs [min, max] as lengths, got {short_edge_length}.")
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        lengths = self.short_edge_length
        length = np.random.randint(lengths[0], lengths[1] + 1) if self.is_range else np.random.choice(lengths)
        if length == 0:
            return NoOpTransform()
        h, w = image.shape[:2]
        return ResizeTransform(h, w, *self.get_output_shape(h, w, length, self.max_size), self.interp)

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """The (height, width) after resizing; each edge is rounded once, at the end, and is 1 at least."""
        length = float(short_edge_length)
        scale = length / min(oldh, oldw)
        # The shorter edge is set rather than multiplied: length / edge * edge may miss length by a rounding error.
        newh, neww = (length, scale * oldw) if oldh < oldw else (scale * oldh, length)
        longest = max(newh, neww)
        if longest > max_size:
            shrink = float(max_size) / longest
            newh, neww = newh * shrink, neww * shrink
        return max(int(newh + 0.5), 1), max(int(neww + 0.5), 1)


class ResizeScale(Augmentation):
    """Fit the image into the target size times a factor from [min_scale, max_scale], keeping its aspect ratio.

    With :class:`FixedSizeCrop` after it this is large-scale jittering (arXiv:2012.07177).
    """

    def __init__(
        self, min_scale: float, max_scale: float, target_height: int, target_width: int, interp: int = Image.BILINEAR
    ):
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        size = np.array(image.shape[:2])
        target = np.array([self.target_height, self.target_width]) * np.random.uniform(self.min_scale, self.max_scale)
        new_h, new_w = np.round(size * (target / size).min()).astype(int).clip(min=1).tolist()
        return ResizeTransform(*image.shape[:2], new_h, new_w, self.interp)


class FixedSizeCrop(Augmentation):
    """Crop what is larger than ``crop_size`` at a random place, pad (right and bottom) what is smaller.

    Args:
        crop_size: (h, w).
        pad: whether to pad at all.
        pad_value, seg_pad_value: what the image and the segmentation are padded with.
    """

    def __init__(
        self, crop_size: tuple[int, int], pad: bool = True, pad_value: float = 128.0, seg_pad_value: int = 255
    ):
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> TransformList:
        size, target = np.array(image.shape[:2]), np.array(self.crop_size)
        # One draw serves both axes: the window lies on the diagonal of its possible places.
        top, left = np.round(np.maximum(size - target, 0) * np.random.uniform(0.0, 1.0)).astype(int)
        steps: list[Transform] = [CropTransform(left, top, target[1], target[0], size[1], size[0])]
        if self.pad:
            below, right = np.maximum(target - size, 0)
            kept_h, kept_w = np.minimum(size, target)
            steps.append(PadTransform(0, 0, right, below, kept_w, kept_h, self.pad_value, self.seg_pad_value))
        return TransformList(steps)


class RandomCrop(Augmentation):
    """Cut out a window at a random place.

    ``crop_size`` means, by ``crop_type``:

    - "relative": the window is (H * crop_size[0], W * crop_size[1]);
    - "relative_range": the same with two factors drawn from [crop_size[0], 1] and [crop_size[1], 1];
    - "absolute": (h, w) in pixels, at most the image;
    - "absolute_range": height and width are each drawn from [crop_size[0], crop_size[1]], at most the image.
    """

    def __init__(self, crop_type: str, crop_size: tuple[float, float]):
        _check_choice(self, "crop_type", crop_type, ("relative_range", "relative", "absolute", "absolute_range"))
        if crop_type.startswith("relative") and not all(0 < s <= 1 for s in crop_size):
            raise ValueError(f"RandomCrop: {crop_type} crop sizes lie in (0, 1], got {tuple(crop_size)}.")
        if crop_type == "absolute_range" and crop_size[0] > crop_size[1]:
            raise ValueError(f"RandomCrop: absolute_range takes (min, max), got {tuple(crop_size)}.")
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        return _window(image.shape[:2], self.get_crop_size(image.shape[:2]))

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Draw the (height, width) of the window for an image of ``image_size``."""
        h, w = image_size
        if self.crop_type == "absolute":
            return min(self.crop_size[0], h), min(self.crop_size[1], w)
        if self.crop_type == "absolute_range":
            low, high = self.crop_size
            return tuple(np.random.randint(min(edge, low), min(edge, high) + 1) for edge in (h, w))
        factors = self.crop_size
        if self.crop_type == "relative_range":
            low = np.asarray(self.crop_size, dtype=np.float32)
            factors = low + np.random.rand(2) * (1 - low)
        return int(h * factors[0] + 0.5), int(w * factors[1] + 0.5)


def _window(image_size: tuple[int, int], crop_size: tuple[int, int]) -> CropTransform:
    """A window of ``crop_size`` at a random place; the row is drawn first."""
    y0 = np.random.randint(image_size[0] - crop_size[0] + 1)
    x0 = np.random.randint(image_size[1] - crop_size[1] + 1)
    return CropTransform(x0, y0, crop_size[1], crop_size[0])


class RandomCrop_CategoryAreaConstraint(Augmentation):
    """:class:`RandomCrop` that tries up to ten times for a window in which no label takes too large a share.

    Args:
        crop_type, crop_size: see :class:`RandomCrop`.
        single_category_max_area: largest share of one label; 1.0 turns the condition off.
        ignored_category: a label that does not count.
    """

    def __init__(
        self,
        crop_type: str,
        crop_size: tuple[float, float],
        single_category_max_area: float = 1.0,
        ignored_category: int | None = None,
    ):
        self.crop_aug = RandomCrop(crop_type, crop_size)
        self._init(locals())

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> Transform:
        if self.single_category_max_area >= 1.0:
            return self.crop_aug.get_transform(image)
        for _ in range(10):
            window = _window(sem_seg.shape, self.crop_aug.get_crop_size(sem_seg.shape))
            labels, counts = np.unique(window.apply_segmentation(sem_seg), return_counts=True)
            counts = counts[labels != self.ignored_category] if self.ignored_category is not None else counts
            if len(counts) > 1 and counts.max() < counts.sum() * self.single_category_max_area:
                break
        return window


class _RandomBlend(Augmentation):
    """Blend the image with a reference: weight below 1 moves towards it, above 1 away from it."""

    def __init__(self, intensity_min: float, intensity_max: float):
        self._init(locals())

    def _reference(self, image: np.ndarray) -> Any:
        raise NotImplementedError

    def get_transform(self, image: np.ndarray) -> Transform:
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=self._reference(image), src_weight=1 - weight, dst_weight=weight)


class RandomContrast(_RandomBlend):
    """Blend with the mean grey by a factor from [intensity_min, intensity_max]; 1 leaves the image as it is."""

    def _reference(self, image: np.ndarray) -> Any:
        return image.mean()


class RandomBrightness(_RandomBlend):
    """Multiply the image by a factor from [intensity_min, intensity_max]."""

    def _reference(self, image: np.ndarray) -> Any:
        return 0


class RandomSaturation(_RandomBlend):
    """Blend an RGB image with its luminance (BT.601) by a factor from [intensity_min, intensity_max]."""

    def _reference(self, image: np.ndarray) -> Any:
        _check_rgb(self, image)
        return image.dot([0.299, 0.587, 0.114])[:, :, np.newaxis]


class RandomLighting(Augmentation):
    """AlexNet's colour noise: add the principal components of ImageNet's RGB values, times normal draws.

    ``scale`` is the standard deviation of the draws; the image is RGB.
    """

    def __init__(self, scale: float):
        self._init(locals())
        self.eigen_vecs = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
        self.eigen_vals = np.array([0.2175, 0.0188, 0.0045])

    def get_transform(self, image: np.ndarray) -> Transform:
        _check_rgb(self, image)
        colour = self.eigen_vecs @ (np.random.normal(scale=self.scale, size=3) * self.eigen_vals)
        return BlendTransform(src_image=colour, src_weight=1.0, dst_weight=1.0)


def _check_rgb(owner: Augmentation, image: np.ndarray) -> None:
    if image.shape[-1] != 3:
        raise ValueError(f"{type(owner).__name__} works on RGB images, but got an image of shape {image.shape}.")
