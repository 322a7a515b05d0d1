"""A data set whose classes have descriptions: what its reader gives, and the checks that all of them share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from dyn_d2.utils.own_files import read_json_of

from .feature_source import FeatureSource


@dataclass(frozen=True)
class Scale:
    """What is subtracted from features, and what they are divided by then, each of a feature's shape."""

    mean: np.ndarray
    std: np.ndarray

    def of(self, features: np.ndarray) -> np.ndarray:
        return (features - self.mean) / self.std


@dataclass(frozen=True)
class Part:
    """Images of one split.

    Attributes:
        features: (N, D) vectors or (N, C, H, W) maps.
        labels: (N,) class numbers.
        files: (N,) names of image files, where they are known.
        boxes: (N, 4), left, top, width and height of what the feature is of, where it is not all of the image.
    """

    features: np.ndarray
    labels: np.ndarray
    files: np.ndarray | None = None
    boxes: np.ndarray | None = None


@dataclass(frozen=True)
class DescribedSet:
    """Classes, their descriptions and the features of their images; checked when it is made.

    Attributes:
        source: where it comes from, for messages.
        classes: C names.
        descriptions: (C, D_t) float32.
        parts: "train" and "test".
        candidates: numbers of the classes among which evaluation decides; all where none are given.
        shots: > 0 where a description is the mean of that many features of the class; in training other images are
            drawn for it at each step.
        network: that has made the features, where it is known.
        scale: what was done to its features; None for nothing.

    Raises:
        ValueError: something does not fit; the message names ``source`` and the class or image.
    """

    source: str
    classes: Sequence[str]
    descriptions: np.ndarray
    parts: dict[str, Part]
    candidates: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    shots: int = 0
    network: FeatureSource | None = None
    scale: Scale | None = None

    def __post_init__(self) -> None:
        twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if twice:
            raise ValueError(f"{self.source} has the class {', '.join(twice[:5])} twice: give each its own name.")
        if self.descriptions.ndim != 2 or len(self.descriptions) != len(self.classes):
            raise ValueError(
                f"{self.source} has {len(self.classes)} classes, but descriptions of shape {self.descriptions.shape}: "
                "each class needs one row."
            )
        bad = np.flatnonzero(~np.isfinite(self.descriptions).all(1))
        if len(bad):
            raise ValueError(f"{self.source}: the description of class {self.classes[bad[0]]} has NaN or infinity.")
        for name, part in self.parts.items():
            self._check_part(name, part)
        if len(self.candidates) == 0:
            object.__setattr__(self, "candidates", np.arange(len(self.classes)))
        if len(self.seen) < 2:
            raise ValueError(f"{self.source} trains on {len(self.seen)} classes: TAFE-Net compares 2 or more.")

    def _check_part(self, name: str, part: Part) -> None:
        if len(part.features) != len(part.labels):
            raise ValueError(
                f"{self.source}: the {name} part has {len(part.features)} features but {len(part.labels)} labels."
            )
        if len(part.labels) == 0:
            raise ValueError(f"{self.source}: the {name} part has no image.")
        outside = np.flatnonzero((part.labels < 0) | (part.labels >= len(self.classes)))
        if len(outside):
            raise ValueError(
                f"{self.source}: image {outside[0]} of the {name} part has label {part.labels[outside[0]]}, there are "
                f"descriptions of {len(self.classes)} classes."
            )
        shape = self.parts["train"].features.shape[1:]
        if part.features.shape[1:] != shape:
            raise ValueError(
                f"{self.source}: the features of the {name} part have the shape {part.features.shape[1:]}, those of "
                f"the training part {shape}: take both from one network."
            )
        if not np.isfinite(part.features).all():
            bad = np.flatnonzero(~np.isfinite(part.features.reshape(len(part.features), -1)).all(1))[0]
            raise ValueError(f"{self.source}: the feature of image {bad} of the {name} part has NaN or infinity.")

    @cached_property
    def seen(self) -> np.ndarray:
        """Numbers of the classes with training images."""
        return np.unique(self.parts["train"].labels)

    @cached_property
    def unseen(self) -> np.ndarray:
        """Candidates without training images."""
        return np.setdiff1d(self.candidates, self.seen)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        return self.parts["train"].features.shape[1:]


def read_class_vectors(path: str | Path) -> dict[str, np.ndarray]:
    """A json {"name of a class": [numbers]}, all of one length.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds something else; names the class.
    """
    vectors: dict[str, np.ndarray] = {}
    for name, numbers in read_json_of(path, 'json {"name": [numbers], ...}').items():
        try:
            with np.errstate(over="ignore"):
                vector = np.asarray(numbers, dtype=np.float32)
        except (OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: the vector of class {name} is no list of numbers.") from error
        if vector.ndim != 1 or len(vector) == 0 or not np.isfinite(vector).all():
            raise ValueError(f"{path}: the vector of class {name} has to be a flat list of finite numbers.")
        vectors[name] = vector
    if not vectors:
        raise ValueError(f'{path} names no class: it has to hold {{"name": [numbers], ...}}.')
    first, width = next((name, len(vector)) for name, vector in vectors.items())
    for name, vector in vectors.items():
        if len(vector) != width:
            raise ValueError(
                f"{path}: the vector of class {name} has {len(vector)} numbers, that of {first} has {width}."
            )
    return vectors
