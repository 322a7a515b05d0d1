"""Files of re-weighting, to be damaged: see tests/damaged_files.py."""

from pathlib import Path
from typing import Any

import torch

from dyn_d2.methods.fsrw.reweighting import ClassVectors


def _write(path: Path) -> None:
    samples = {"cat": torch.arange(6.0).view(2, 3), "dog": torch.ones(1, 3)}
    ClassVectors.mean_of(samples, "0a", [["1/1", "2/1"], ["3/1"]]).save(path)


def _read(path: Path) -> Any:
    found = ClassVectors.load_all([str(path)])
    own = found.select(found.classes)
    return own.classes, own.vectors.tolist(), [len(samples) for samples in own.samples], own.supports, own.detector


KINDS = (("vectors.npz", _write, _read),)
