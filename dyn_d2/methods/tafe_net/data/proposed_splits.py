"""SUN, CUB, AWA1, AWA2 and aPY as Xian et al. published them: ResNet-101 features, attributes and proposed splits."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .described_set import DescribedSet, Part

FOLDERS = {"sun": "SUN", "cub": "CUB", "awa1": "AWA1", "awa2": "AWA2", "apy": "APY"}
ADDRESS = (
    '"Proposed Split", xlsa17.zip, at https://www.mpi-inf.mpg.de/departments/computer-vision-and-machine-learning/'
    "research/zero-shot-learning (Xian et al.); unpack it there"
)
# Parts of a data set -> the index lists of att_splits.mat that they are made of.
LISTS = {"train": ("trainval_loc",), "test": ("test_seen_loc", "test_unseen_loc")}
# For choosing settings: some of the training classes become unseen.
TUNE_LISTS = {"train": ("train_loc",), "test": ("val_loc",)}


def read_proposed_split(files: Sequence[Path], tune: bool = False) -> DescribedSet:
    """
    Args:
        files: res101.mat and att_splits.mat.
        tune: divide the training classes themselves (train_loc, val_loc), so that no test image is looked at.

    Raises:
        ValueError: a file is not what it should be, or an unseen class is trained on.
    """
    features_file, splits_file = files
    content = _read_mat(features_file, ("features", "labels"))
    lists = TUNE_LISTS if tune else LISTS
    splits = _read_mat(splits_file, ("allclasses_names", *(name for names in lists.values() for name in names)))
    attributes = splits["original_att"] if "original_att" in splits else splits.get("att")
    if attributes is None:
        raise ValueError(f"{splits_file} has neither original_att nor att: download it again.")
    features = content["features"].T
    labels = content["labels"].reshape(-1).astype(np.int64) - 1
    if len(features) != len(labels):
        raise ValueError(f"{features_file} holds {len(features)} features but {len(labels)} labels: download it again.")
    parts = {}
    for part, names in lists.items():
        places = np.concatenate([splits[name].reshape(-1).astype(np.int64) - 1 for name in names])
        if len(places) and (places.min() < 0 or places.max() >= len(labels)):
            raise ValueError(
                f"{splits_file}: {names[0]} names image {places.max() + 1}, {features_file.name} has {len(labels)}: "
                "both files have to be of one data set."
            )
        parts[part] = Part(features[places].astype(np.float32), labels[places])
    classes = [str(np.asarray(name).reshape(-1)[0]) for name in splits["allclasses_names"].reshape(-1)]
    _check_unseen(splits_file, lists["test"][-1], splits, labels, parts["train"].labels, classes)
    candidates = np.unique(np.concatenate([part.labels for part in parts.values()]))
    return DescribedSet(
        str(splits_file.parent), classes, np.ascontiguousarray(attributes.T, np.float32), parts, candidates
    )


def _check_unseen(
    file: Path, name: str, splits: dict[str, Any], labels: np.ndarray, trained: np.ndarray, classes: list[str]
) -> None:
    both = np.intersect1d(labels[splits[name].reshape(-1).astype(np.int64) - 1], trained)
    if len(both):
        raise ValueError(
            f"{file}: {classes[both[0]]} is among the unseen classes ({name}) and is trained on: these are not the "
            "proposed splits, download the file again."
        )


def _read_mat(path: Path, needed: Sequence[str]) -> dict[str, Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(str(path))
    except (ValueError, TypeError, NotImplementedError, EOFError, zlib.error, MatReadError) as error:
        raise ValueError(f"{path} is no .mat file that scipy can read ({error}): download it again.") from error
    absent = [name for name in needed if name not in content]
    if absent:
        raise ValueError(f"{path} has no {', '.join(absent)}: it is not the published file, download it again.")
    return content
