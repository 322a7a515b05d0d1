"""Classifiers of timm as members of an IDK cascade, with the weights that somebody else trained."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as picture

from dyn_d2.data.classification.mapper import decode
from dyn_d2.evaluation.results import weights_hash
from dyn_d2.modeling.backbone.timm_models import PRETRAINED, build_timm_classifier, own_size

from .execution import IDKCascadeModel
from .sizes import split_size

PREFIX = "timm:"
CENTER, SQUASH = "center", "squash"  # timm's names: what becomes of an image that is no square


class TimmClassifier(IDKCascadeModel):
    """A pretrained model of timm. Its images are records of a data set, resized as timm says that the model wants them
    (the shorter side, or both sides to a square, then a square from the middle); ``classes`` are ImageNet's wnids where
    it knows ImageNet's classes.
    """

    def __init__(self, name: str, pixels: int = 0, weights: str = PRETRAINED) -> None:
        """
        Args:
            name: timm's.
            pixels: side of the square that it sees; 0 for its own.
            weights: as MODEL.TIMM.WEIGHTS.

        Raises:
            UserError, ValueError, FileNotFoundError: from ``build_timm_classifier``.
            ValueError: it takes no images of ``pixels``, or crops them otherwise.
        """
        built = build_timm_classifier(name, weights)
        own = own_size(built.module)
        if pixels and built.size is not None and (pixels, pixels) != built.size:
            raise ValueError(f"{PREFIX}{name}@{pixels}: this model takes images of {built.size[0]} pixels only.")
        config = built.module.pretrained_cfg
        mode = config.get("crop_mode") or CENTER
        if mode not in (CENTER, SQUASH):
            raise ValueError(
                f"{PREFIX}{name}: timm crops images of this model by {mode!r}, which is not supported: give a model "
                f"whose crop_mode is {CENTER} or {SQUASH}."
            )
        self.pixels = pixels or own[0]
        self.name = name if self.pixels == own[0] else f"{name}@{pixels}"
        self.weights = f"{PREFIX}{self.name}"
        self.module = built.module.to(memory_format=torch.channels_last)
        self.classes = class_names(built.module)
        side = int(self.pixels / (config.get("crop_pct") or 1.0))
        self._resized = [side, side] if mode == SQUASH else [side]  # one number is that of the shorter side
        self._way = InterpolationMode(config.get("interpolation") or "bicubic")
        self._mean, self._std = (torch.tensor(values).reshape(-1, 1, 1) for values in (built.mean, built.std))

    @classmethod
    def of(cls, text: str) -> "TimmClassifier":
        """From "timm:NAME" or "timm:NAME@PIXELS".

        Raises:
            ValueError: it is written otherwise, and as above.
        """
        name, pixels = split_size(text)
        return cls(name.removeprefix(PREFIX), pixels)

    def weights_hash(self) -> str:
        return weights_hash(self.module)

    def prepare(self, images: Sequence[dict[str, Any]]) -> Tensor:
        """(n, 3, S, S) uint8, red first."""
        return torch.stack([self._square(record) for record in images])

    def _square(self, record: dict[str, Any]) -> Tensor:
        image = picture.resize(Image.fromarray(decode(record)), self._resized, self._way)
        return picture.pil_to_tensor(picture.center_crop(image, [self.pixels, self.pixels]))

    @torch.inference_mode()
    def answer(self, inputs: Tensor) -> list[np.ndarray]:
        """(K,) probabilities of each image."""
        images = (inputs.float() - self._mean) / self._std
        scores = self.module(images.contiguous(memory_format=torch.channels_last))
        return list(scores.double().softmax(1).numpy())

    def costs(self, inputs: Tensor, answers: Sequence[Any]) -> np.ndarray:
        return np.full(len(inputs), self._multiply_adds)

    @cached_property
    def _multiply_adds(self) -> float:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.module(torch.zeros(1, 3, self.pixels, self.pixels))
        return counter.get_total_flops() / 2  # it counts multiplications and additions apart


def class_names(module: torch.nn.Module) -> list[str]:
    """ImageNet's wnids (or those of the part of ImageNet that the model knows), in the order of its scores; empty where
    timm does not say."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(module)
    return list(ImageNetInfo(subset).label_names()) if subset else []
