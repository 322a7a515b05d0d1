# ruff: noqa: F401
"""Deterministic transforms (most of them fvcore's) and the random augmentations that choose them."""

from fvcore.transforms.transform import (
    BlendTransform,
    CropTransform,
    GridSampleTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    ScaleTransform,
    Transform,
    TransformList,
    VFlipTransform,
)

from .augmentation import (
    AugInput,
    Augmentation,
    AugmentationList,
    StandardAugInput,
    TransformGen,
    apply_augmentations,
    apply_transform_gens,
)
from .augmentation_impl import (
    FixedSizeCrop,
    RandomApply,
    RandomBrightness,
    RandomContrast,
    RandomCrop,
    RandomCrop_CategoryAreaConstraint,
    RandomExtent,
    RandomFlip,
    RandomLighting,
    RandomResize,
    RandomSaturation,
    Resize,
    ResizeScale,
    ResizeShortestEdge,
)
from .transform import ColorAugSSDTransform, ColorTransform, ExtentTransform, PILColorTransform, ResizeTransform


def __getattr__(name: str):
    if name in ("RandomRotation", "RotationTransform", "MinIoURandomCrop"):
        raise AttributeError(f"The embedded engine has no {name}; it needs an installed Detectron2.")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
