"""The few-shot ImageNet benchmark of Hariharan and Girshick: a class is described by features of some of its images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dyn_d2.utils.errors import UserError
from dyn_d2.utils.extras import how_to_install
from dyn_d2.utils.own_files import read_json_of

from .described_set import DescribedSet, Part

ADDRESS = (
    "https://github.com/facebookresearch/low-shot-shrink-hallucinate: its save_features.py writes train.hdf5 and "
    "val.hdf5, label_idx.json and experiment_cfgs/ come with it"
)
SHOTS, EXPERIMENTS = (1, 2, 5, 10, 20), (1, 2, 3, 4, 5)


def files_of(experiment: int) -> list[str]:
    """Paths below the root of the data sets, in the order that ``read_low_shot`` takes."""
    folder = "low_shot_imagenet"
    return [
        f"{folder}/train.hdf5",
        f"{folder}/val.hdf5",
        f"{folder}/label_idx.json",
        f"{folder}/experiment_cfgs/splitfile_{experiment}.json",
    ]


def read_low_shot(files: Sequence[Path], shots: int, tune: bool = False) -> DescribedSet:
    """Training: the images of the base classes. A base class is described by the mean feature of all its images, a
    novel one by that of its n examples. The test images are those of ImageNet's validation set.

    Args:
        files: features of ImageNet's training and validation images, the division into classes, the examples.
        shots: n.
        tune: test on the classes for choosing settings, not on those for reporting.

    Raises:
        UserError: h5py is not installed.
        ValueError: the files do not fit each other.
    """
    train_file, test_file, classes_file, examples_file = files
    division, examples = _read_json(classes_file, dict), np.asarray(_read_json(examples_file, list))
    try:
        base, novel = (np.asarray(division[f"{kind}_classes_{1 if tune else 2}"]) for kind in ("base", "novel"))
        trained = np.asarray(division["base_classes"])
    except KeyError as error:
        raise ValueError(f"{classes_file} has no list {error}: copy it from the repository again.") from error
    if examples.ndim != 2 or examples.shape[1] < shots or len(examples) <= max(base.max(), novel.max()):
        raise ValueError(f"{examples_file} has no {shots} examples of each class: copy it from the repository again.")
    features, labels = _read_features(train_file)
    if examples.max() >= len(labels):
        raise ValueError(f"{examples_file} names image {examples.max()}, {train_file} has {len(labels)}.")
    descriptions = np.zeros((len(examples), features.shape[1]), np.float32)
    for number in novel:
        chosen = examples[number, :shots]
        if (labels[chosen] != number).any():
            raise ValueError(
                f"{examples_file}: an example of class {number} has another label in {train_file.name}: the features "
                "have to be saved in the order of the images in ImageNet's folders."
            )
        descriptions[number] = features[chosen].mean(0)
    kept = np.isin(labels, trained)
    for number in trained:
        own = features[labels == number]
        if len(own) == 0:
            raise ValueError(f"{train_file} has no image of the base class {number}.")
        descriptions[number] = own.mean(0)
    parts = {"train": Part(features[kept], labels[kept])}
    test_features, test_labels = _read_features(test_file)
    candidates = np.union1d(base, novel)
    kept = np.isin(test_labels, candidates)
    parts["test"] = Part(test_features[kept], test_labels[kept])
    names = [f"class {number}" for number in range(len(examples))]
    return DescribedSet(str(train_file.parent), names, descriptions, parts, candidates, shots)


def _read_features(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path}: {how_to_install('h5py')}.") from error
    try:
        with h5py.File(path, "r") as file:
            count = int(file["count"][0])
            return np.asarray(file["all_feats"][:count], np.float32), np.asarray(file["all_labels"][:count], np.int64)
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} is no file of save_features.py ({error}): make it again.") from error


def _read_json(path: Path, kind: type) -> Any:
    return read_json_of(path, "json of a low-shot benchmark", kind)
