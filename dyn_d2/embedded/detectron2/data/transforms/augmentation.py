"""An augmentation looks at its input and chooses, usually at random, a deterministic transform.

The transform it returns is applied to the image at once and can be applied to everything else that belongs to it.
All randomness comes from ``numpy.random``, so a seed there fixes the augmentations of a process.
"""

import inspect
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList


class Augmentation:
    """Base class; a subclass overrides :meth:`get_transform`, whose argument names are attributes of the input.

    ``get_transform(self, image)``, or with more of :class:`AugInput`, as in ``get_transform(self, image, sem_seg)``.
    A single argument is the image, whatever its name.
    """

    input_args: tuple[str, ...] | None = None

    def _init(self, params: dict[str, Any] | None = None) -> None:
        """Keep constructor arguments (``locals()``) as attributes."""
        self.__dict__.update({k: v for k, v in (params or {}).items() if k != "self" and not k.startswith("_")})

    def get_transform(self, *args: Any) -> Transform:
        """Choose the transform for this input.

        Conventions: image (H, W) or (H, W, C), uint8 or float; boxes (N, 4) float, x0 y0 x1 y1 in pixels;
        sem_seg (H, W) integer labels.
        """
        raise NotImplementedError

    def _read_args(self, aug_input: Any) -> list[Any]:
        if self.input_args is None:
            params = inspect.signature(self.get_transform).parameters.values()
            if len(params) > 1 and any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in params):
                raise TypeError(
                    f"{type(self).__name__}.get_transform takes *args or **kwargs, so its inputs are unknown: "
                    "name them, or override __call__."
                )
            self.input_args = ("image",) if len(params) == 1 else tuple(p.name for p in params)
        missing = [name for name in self.input_args if not hasattr(aug_input, name)]
        if missing:
            raise AttributeError(
                f"{type(self).__name__}.get_transform needs '{missing[0]}', which {type(aug_input).__name__} lacks."
            )
        return [getattr(aug_input, name) for name in self.input_args]

    def __call__(self, aug_input: Any) -> Transform:
        """Transform ``aug_input`` in place and return the transform."""
        transform = self.get_transform(*self._read_args(aug_input))
        if not isinstance(transform, Transform):
            raise TypeError(f"{type(self).__name__}.get_transform returned {type(transform)}, not a Transform.")
        aug_input.transform(transform)
        return transform

    def _rand_range(self, low: float = 1.0, high: float | None = None, size: Any = None) -> Any:
        """A uniform draw from [low, high), or from [0, low) without ``high``."""
        if high is None:
            low, high = 0, low
        return np.random.uniform(low, high, [] if size is None else size)

    def __repr__(self) -> str:
        params = inspect.signature(type(self)).parameters.values()
        if not all(hasattr(self, p.name) for p in params):
            return super().__repr__()
        values = ((p.name, getattr(self, p.name), p.default) for p in params)
        shown = ", ".join(f"{name}={value!r}" for name, value, default in values if value is not default)
        return f"{type(self).__name__}({shown})"

    __str__ = __repr__


class _TransformToAug(Augmentation):
    """The augmentation that always chooses the same transform."""

    def __init__(self, tfm: Transform):
        self.tfm = tfm

    def get_transform(self, *args: Any) -> Transform:
        return self.tfm

    def __repr__(self) -> str:
        return repr(self.tfm)

    __str__ = __repr__


def _transform_to_aug(tfm_or_aug: Transform | Augmentation) -> Augmentation:
    if isinstance(tfm_or_aug, Transform):
        return _TransformToAug(tfm_or_aug)
    if not isinstance(tfm_or_aug, Augmentation):
        raise TypeError(f"Expected a Transform or an Augmentation, got {type(tfm_or_aug)}.")
    return tfm_or_aug


class AugmentationList(Augmentation):
    """Augmentations one after the other, each choosing by the result of those before it."""

    def __init__(self, augs: list[Augmentation | Transform]):
        self.augs = [_transform_to_aug(x) for x in augs]

    def __call__(self, aug_input: Any) -> TransformList:
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(map(str, self.augs))}]"

    __str__ = __repr__


class AugInput:
    """An image, and what may be needed to choose its augmentation; ``transform`` changes all of it in place.

    Args:
        image: (H, W) or (H, W, C), uint8 in [0, 255] or floating point.
        boxes: (N, 4) float, x0 y0 x1 y1 in pixels.
        sem_seg: (H, W) uint8 labels.

    Raises:
        TypeError: ``image`` is no such array.
    """

    def __init__(self, image: np.ndarray, *, boxes: np.ndarray | None = None, sem_seg: np.ndarray | None = None):
        if not isinstance(image, np.ndarray) or image.ndim not in (2, 3):
            raise TypeError(f"AugInput needs an array (H, W) or (H, W, C), got {getattr(image, 'shape', type(image))}.")
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        self.image = tfm.apply_image(self.image)
        self.boxes = None if self.boxes is None else tfm.apply_box(self.boxes)
        self.sem_seg = None if self.sem_seg is None else tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(self, augmentations: list[Augmentation | Transform]) -> TransformList:
        """``AugmentationList(augmentations)`` applied to this input."""
        return AugmentationList(augmentations)(self)


def apply_augmentations(augmentations: list[Transform | Augmentation], inputs: Any) -> tuple[Any, TransformList]:
    """Augment ``inputs``, an :class:`AugInput` or a plain image; returns it (transformed) and the transforms."""
    if isinstance(inputs, np.ndarray):
        wrapped = AugInput(inputs)
        transforms = wrapped.apply_augmentations(augmentations)
        return wrapped.image, transforms
    return inputs, inputs.apply_augmentations(augmentations)
