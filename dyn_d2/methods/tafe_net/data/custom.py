"""Your own features and descriptions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dyn_d2.utils.own_files import arrays_of

from .described_set import DescribedSet, Part, read_class_vectors


def read_custom(files: Sequence[Path]) -> DescribedSet:
    """
    Args:
        files: npz of the training images, npz of the test images (both with ``features``, (N, D) or (N, C, H, W), and
            ``labels``, (N,) names of classes), json {name: vector} of the classes.

    Raises:
        ValueError: a file is not what it should be, or an image's class has no description.
    """
    train_file, test_file, classes_file = files
    vectors = read_class_vectors(classes_file)
    number = {name: i for i, name in enumerate(vectors)}
    parts = {}
    for name, path in (("train", train_file), ("test", test_file)):
        with arrays_of(path, "npz with features and labels") as content:
            features, labels = content["features"], [str(label) for label in content["labels"]]
            if features.dtype.kind not in "fiub":
                raise ValueError(f"the features are of the type {features.dtype}")
            if not len(features) or len(features) != len(labels):
                raise ValueError(f"it has {len(features)} features, but {len(labels)} labels")
            if not np.isfinite(features).all():
                raise ValueError("a feature has NaN or infinity")
        absent = sorted(set(labels) - number.keys())
        if absent:
            raise ValueError(
                f"{path} has images of {', '.join(absent[:5])}, which {classes_file} does not describe: add a line "
                "with the vector of each class."
            )
        if features.ndim not in (2, 4):
            raise ValueError(f"{path}: features have the shape {features.shape}; (N, D) or (N, C, H, W) are possible.")
        parts[name] = Part(features.astype(np.float32), np.array([number[label] for label in labels], dtype=np.int64))
    return DescribedSet(str(classes_file), list(vectors), np.stack(list(vectors.values())), parts)
