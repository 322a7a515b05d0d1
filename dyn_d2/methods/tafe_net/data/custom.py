"""Your own features and descriptions; which classes are unseen, and folds of the training images to choose settings."""

import csv
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dyn_d2.utils.own_files import arrays_of
from dyn_d2.utils.seeds import derive_seed

from .described_set import DescribedSet, Part, Scale, read_class_vectors
from .feature_source import FeatureSource

HELD_OUT = 5  # of so many images one is held out where a fold is tested
LEAST_STD = 1e-3  # is added, for features that are 0 everywhere
COUNTS = ("objects", "images")  # headings of columns of a csv that are no part of a description


@dataclass(frozen=True)
class CustomOptions:
    """What is made of the files; see the keys of ZERO_SHOT.CUSTOM.

    Attributes:
        unseen: classes whose training images are left out.
        standardise: features get the mean 0 and the standard deviation 1 of the training images.
        fold, folds: with ``fold`` > 0 the classes number fold, fold + folds, ... of the seen ones are unseen, and the
            test part is made of training images: all of these classes, and of the others a fifth that is not
            trained on. Classes that are unseen anyhow are left out, so that they choose nothing.
        shots: > 0 where a class is described by the mean feature of its images: of all training images where it is
            seen, of so many that are drawn where it is not.
        draw: another number draws other examples.
    """

    unseen: tuple[str, ...] = ()
    standardise: bool = False
    fold: int = 0
    folds: int = 3
    shots: int = 0
    draw: int = 0


@dataclass
class _Images:
    """What a file holds: features, the names of their classes, and, where it says so, which image each is of, where
    in it, and which network has made them."""

    features: np.ndarray
    labels: np.ndarray
    files: np.ndarray | None
    boxes: np.ndarray | None
    source: FeatureSource | None

    def kept(self, which: np.ndarray) -> "_Images":
        files, boxes = (None if values is None else values[which] for values in (self.files, self.boxes))
        return _Images(self.features[which], self.labels[which], files, boxes, self.source)

    def scaled(self, scale: Scale | None) -> "_Images":
        return self if scale is None else replace(self, features=scale.of(self.features))


@dataclass
class _Division:
    """Training and test images, and the classes among which the test decides."""

    train: _Images
    test: _Images
    candidates: list[str] = field(default_factory=list)


def read_custom(files: Sequence[Path], options: CustomOptions | None = None) -> DescribedSet:
    """
    Args:
        files: npz of the training images, npz of the test images (both with ``features``, (N, D) or (N, C, H, W),
            ``labels``, (N,) names of classes, and, if they are known, ``images``, (N,) names of files, and ``boxes``,
            (N, 4), and ``source``, the network); json {name: vector} of the classes, or csv with their names in the
            first column. The last is missing where classes are described by examples.

    Raises:
        ValueError: a file is not what it should be, the features are of two networks, an image's class has no
            description, or an unseen one no image.
    """
    options = options or CustomOptions()
    train_file, test_file, *described = files
    train, test = _read_images(train_file), _read_images(test_file)
    if train.source and test.source and train.source != test.source:
        raise ValueError(
            f"{train_file} has features of {train.source}, {test_file} of {test.source} or of other weights: make both "
            "with the same options of dyn-d2 crop-features."
        )
    vectors = read_vectors(described[0]) if described else {}
    classes = list(vectors) or sorted({*train.labels, *test.labels})
    source = str(described[0] if described else train_file)
    for path, images in ((train_file, train), (test_file, test)):
        absent = sorted(set(images.labels) - set(classes))
        if absent:
            raise ValueError(
                f"{path} has images of {', '.join(absent[:5])}, which {source} does not describe: add a line "
                "with the vector of each class."
            )
    unknown = sorted(set(options.unseen) - set(classes))
    if unknown:
        raise ValueError(f"ZERO_SHOT.CUSTOM.UNSEEN names {', '.join(unknown)}, which {source} does not describe.")
    divided = _fold(train, classes, options) if options.fold else _division(train, test, classes, options)
    scale = _scale_of(divided.train.features) if options.standardise else None
    if not vectors:
        vectors = _example_vectors(divided.train.scaled(scale), train.scaled(scale), classes, options)
    number = {name: i for i, name in enumerate(classes)}
    parts = {
        name: Part(
            images.features,
            np.array([number[label] for label in images.labels], dtype=np.int64),
            images.files,
            images.boxes,
        )
        for name, images in (("train", divided.train.scaled(scale)), ("test", divided.test.scaled(scale)))
    }
    candidates = np.array([number[name] for name in divided.candidates], dtype=np.int64)
    descriptions = np.stack([vectors[name] for name in classes])
    return DescribedSet(source, classes, descriptions, parts, candidates, options.shots, train.source, scale)


def _division(train: _Images, test: _Images, classes: list[str], options: CustomOptions) -> _Division:
    return _Division(train.kept(~np.isin(train.labels, options.unseen)), test, classes)


def _fold(train: _Images, classes: list[str], options: CustomOptions) -> _Division:
    seen = [name for name in classes if name not in options.unseen and name in set(train.labels)]
    if options.fold > options.folds or len(seen) < 2 * options.folds:
        raise ValueError(
            f"ZERO_SHOT.CUSTOM.FOLD is {options.fold} of {options.folds} FOLDS, over {len(seen)} classes with training "
            "images: use a FOLD of at most FOLDS, and at least two classes a fold."
        )
    left_out = seen[options.fold - 1 :: options.folds]
    mine, other = np.isin(train.labels, left_out), np.isin(train.labels, [s for s in seen if s not in left_out])
    groups = range(len(train.labels)) if train.files is None else train.files
    held = np.array([zlib.crc32(str(group).encode()) % HELD_OUT == 0 for group in groups])
    return _Division(train.kept(other & ~held), train.kept(mine | (other & held)), seen)


def _scale_of(features: np.ndarray) -> Scale:
    return Scale(features.mean(0), features.std(0) + LEAST_STD)


def _example_vectors(
    train: _Images, every: _Images, classes: list[str], options: CustomOptions
) -> dict[str, np.ndarray]:
    """Mean features: of all images that are trained on, or of examples out of ``every`` image of the training file."""
    if options.fold or train.features.ndim != 2:
        raise ValueError(
            "ZERO_SHOT.CUSTOM.CLASSES is empty, so that examples describe the classes: that needs features that are "
            "vectors, and FOLD 0."
        )
    vectors, trained = {}, set(train.labels)
    for name in classes:
        own = (train if name in trained else every).features
        own = own[(train if name in trained else every).labels == name]
        if name not in trained and len(own) < options.shots:
            raise ValueError(
                f"class {name} has {len(own)} training images, but ZERO_SHOT.CUSTOM.SHOTS {options.shots} are to "
                "describe it: lower it, or give ZERO_SHOT.CUSTOM.CLASSES."
            )
        if name not in trained:
            rng = np.random.default_rng(derive_seed("examples", options.draw, name))
            own = own[rng.choice(len(own), options.shots, replace=False)]
        vectors[name] = own.mean(0)
    return vectors


def read_vectors(path: Path) -> dict[str, np.ndarray]:
    """Class vectors of a json, or of a csv: a line of headings, then a class a line, its name first. Columns with the
    heading "objects" or "images" are counts and left out.

    Raises:
        ValueError: it is neither, or a vector holds something other than numbers; names the class.
    """
    if path.suffix.lower() != ".csv":
        return read_class_vectors(path)
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no csv file: {error}") from error
    kept = [i for i, heading in enumerate(rows[0]) if i and heading not in COUNTS] if rows else []
    vectors: dict[str, np.ndarray] = {}
    for name, *numbers in rows[1:]:
        if name in vectors or len(numbers) != len(rows[0]) - 1 or not kept:
            raise ValueError(
                f"{path}: class {name} needs one line with {len(rows[0]) - 1} numbers, as the headings say."
            )
        try:
            vector = np.array([float(numbers[i - 1]) for i in kept], np.float32)
        except ValueError as error:
            raise ValueError(f"{path}: the line of class {name} holds something other than numbers.") from error
        if not np.isfinite(vector).all():
            raise ValueError(f"{path}: the line of class {name} has NaN or infinity.")
        vectors[name] = vector
    if not vectors:
        raise ValueError(f"{path} names no class: below the line of headings, each line is a name and its numbers.")
    return vectors


def _read_images(path: Path) -> _Images:
    with arrays_of(path, "npz with features and labels") as content:
        features, labels = content["features"], content["labels"].astype(str)
        files = content["images"].astype(str) if "images" in content else None
        boxes = content["boxes"].astype(np.float64) if "boxes" in content else None
        source = FeatureSource.read_text(str(content["source"])) if "source" in content else None
        if features.dtype.kind not in "fiub":
            raise ValueError(f"the features are of the type {features.dtype}")
        if not len(features):
            raise ValueError("it has no features")
        if not np.isfinite(features).all():
            raise ValueError("a feature has NaN or infinity")
        for name, values in (("labels", labels), ("images", files), ("boxes", boxes)):
            if values is not None and len(values) != len(features):
                raise ValueError(f"it has {len(features)} features but {len(values)} {name}")
        if boxes is not None and boxes.shape[1:] != (4,):
            raise ValueError(f"its boxes have the shape {boxes.shape}, not (N, 4)")
    if features.ndim not in (2, 4):
        raise ValueError(f"{path}: features have the shape {features.shape}; (N, D) or (N, C, H, W) are possible.")
    return _Images(features.astype(np.float32), labels, files, boxes, source)
