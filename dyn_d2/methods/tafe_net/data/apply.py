"""What follows from ZERO_SHOT.* and the choice of a data set with descriptions."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dyn_d2.data.classification import ensure_classes

from detectron2.config import CfgNode

from .custom import read_custom
from .described_set import read_class_vectors
from .sets import CUSTOM, SPLITS, Benchmark, described_set, is_described, register_benchmark


@dataclass(frozen=True)
class ClassTable:
    """The classes that a model knows: those of its data set, then those of ZERO_SHOT.CLASSES.

    Attributes:
        classes: C names.
        descriptions: (C, D_t).
    """

    classes: list[str]
    descriptions: np.ndarray


def class_table(cfg: CfgNode) -> ClassTable:
    """The table of ``cfg``, whose data sets all have the same classes.

    Raises:
        ValueError: no data set; a class of ZERO_SHOT.CLASSES has a name that is taken, or a vector of another width.
        FileNotFoundError: a file is missing.
    """
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if not names:
        raise ValueError("DATASETS.TRAIN and DATASETS.TEST are empty: TAFE-Net has its classes from them.")
    described, path = described_set(names[0]), cfg.ZERO_SHOT.CLASSES
    added = _added_classes(path) if path else {}
    width = described.descriptions.shape[1]
    for name, vector in added.items():
        if name in described.classes:
            raise ValueError(f"ZERO_SHOT.CLASSES {path}: {names[0]} has a class {name} already, choose another name.")
        if len(vector) != width:
            raise ValueError(
                f"ZERO_SHOT.CLASSES {path}: the vector of class {name} has {len(vector)} numbers, the descriptions of "
                f"{names[0]} have {width}."
            )
    return ClassTable([*described.classes, *added], np.stack([*described.descriptions, *added.values()]))


def _added_classes(path: str) -> dict[str, np.ndarray]:
    if not Path(path).is_file():
        raise FileNotFoundError(f'ZERO_SHOT.CLASSES {path} does not exist: it is a json {{"name": [numbers], ...}}.')
    return read_class_vectors(path)


def apply_described(cfg: CfgNode, set_key: Callable[[str, Any, str], None]) -> None:
    """Register ZERO_SHOT.CUSTOM and check that model and data sets fit; called before ``cfg`` is frozen.

    Args:
        set_key: (key, value, why) -> sets a derived value, unless the user gave one.

    Raises:
        ValueError: a part of ZERO_SHOT.CUSTOM is missing; TAFENet on other data sets, or another model on these.
    """
    custom = cfg.ZERO_SHOT.CUSTOM
    given = {key: custom[key] for key in ("TRAIN", "TEST", "CLASSES") if custom[key]}
    if given:
        absent = [f"ZERO_SHOT.CUSTOM.{key}" for key in ("TRAIN", "TEST", "CLASSES") if key not in given]
        if absent:
            raise ValueError(f"{', '.join(absent)} is empty: your own data need all three files (docs/tafe_net.md).")
        files = [str(Path(custom[key]).absolute()) for key in ("TRAIN", "TEST", "CLASSES")]
        register_benchmark(CUSTOM, Benchmark(files, "", read_custom))
        for split in SPLITS:
            set_key(f"DATASETS.{split.upper()}", (f"{CUSTOM}_{split}",), f"ZERO_SHOT.CUSTOM.{split.upper()}")
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if cfg.MODEL.META_ARCHITECTURE == "TAFENet":
        others = [name for name in names if not is_described(name)]
        if others:
            raise ValueError(
                f"MODEL.META_ARCHITECTURE is TAFENet, but the classes of {', '.join(others)} have no descriptions: "
                "docs/tafe_net.md lists the data sets that it takes."
            )
        for name in names:
            ensure_classes(name)
    elif any(map(is_described, names)):
        raise ValueError(
            f"{next(filter(is_described, names))} holds features and descriptions, which only MODEL.META_ARCHITECTURE "
            f"TAFENet takes, not {cfg.MODEL.META_ARCHITECTURE}."
        )
