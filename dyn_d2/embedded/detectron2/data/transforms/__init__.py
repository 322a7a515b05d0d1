# ruff: noqa: F401, I001
"""Deterministic transforms (most of them fvcore's) and the random augmentations that choose them."""

from fvcore.transforms.transform import BlendTransform, CropTransform, GridSampleTransform, HFlipTransform
from fvcore.transforms.transform import NoOpTransform, PadTransform, ScaleTransform, Transform, TransformList
from fvcore.transforms.transform import VFlipTransform

from detectron2.left_out import refusal_of

from .augmentation import AugInput, Augmentation, AugmentationList, apply_augmentations
from .augmentation_impl import FixedSizeCrop, RandomApply, RandomBrightness, RandomContrast, RandomCrop
from .augmentation_impl import RandomCrop_CategoryAreaConstraint, RandomFlip, RandomLighting, RandomSaturation
from .augmentation_impl import Resize, ResizeScale, ResizeShortestEdge
from .transform import ResizeTransform

__getattr__ = refusal_of(__name__)
