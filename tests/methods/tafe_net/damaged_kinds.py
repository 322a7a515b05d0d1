"""Files of descriptions and features, to be damaged: see tests/damaged_files.py."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from dyn_d2.methods.tafe_net.data.custom import read_custom
from dyn_d2.methods.tafe_net.data.described_set import read_class_vectors

_CLASSES = {"cat": [0.5, 1], "dog": [1, -2.0]}


def _write_features(path: Path) -> None:
    np.savez(path, features=np.ones((3, 4), np.float32), labels=np.array(["cat", "dog", "cat"]))


def _read_features(path: Path) -> Any:
    classes = path.with_name("classes.json")
    classes.write_text(json.dumps(_CLASSES))
    found = read_custom([path, path, classes])
    return found.classes, found.seen.tolist(), found.feature_shape, float(np.sum(found.parts["test"].features))


def _read_vectors(path: Path) -> Any:
    return {name: vector.tolist() for name, vector in read_class_vectors(path).items()}


KINDS = (
    ("classes.json", lambda path: path.write_text(json.dumps(_CLASSES)), _read_vectors),
    ("features.npz", _write_features, _read_features),
)
