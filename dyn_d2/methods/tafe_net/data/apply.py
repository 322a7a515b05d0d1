"""What follows from ZERO_SHOT.* and the choice of a data set with descriptions."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dyn_d2.data.classification import ensure_classes
from dyn_d2.utils.seeds import derive_seed

from detectron2.config import CfgNode

from .custom import CustomOptions, read_custom
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
    described = described_set(names[0])
    table = ClassTable(list(described.classes), described.descriptions)
    return with_added_classes(table, cfg.ZERO_SHOT.CLASSES, names[0])


def with_added_classes(table: ClassTable, path: str, source: str) -> ClassTable:
    """``table``, and behind it the classes of a json {"name": [numbers]}; the same table for the path "".

    Args:
        source: of ``table``, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none, has a name that is taken, or a vector of another width.
    """
    if not path:
        return table
    if not Path(path).is_file():
        raise FileNotFoundError(f'ZERO_SHOT.CLASSES {path} does not exist: it is a json {{"name": [numbers], ...}}.')
    added, width = read_class_vectors(path), table.descriptions.shape[1]
    for name, vector in added.items():
        if name in table.classes:
            raise ValueError(f"ZERO_SHOT.CLASSES {path}: {source} has a class {name} already, choose another name.")
        if len(vector) != width:
            raise ValueError(
                f"ZERO_SHOT.CLASSES {path}: the vector of class {name} has {len(vector)} numbers, the descriptions of "
                f"{source} have {width}."
            )
    return ClassTable([*table.classes, *added], np.stack([*table.descriptions, *added.values()]))


def apply_described(cfg: CfgNode, set_key: Callable[[str, Any, str], None]) -> None:
    """Register ZERO_SHOT.CUSTOM and check that model and data sets fit; called before ``cfg`` is frozen.

    Args:
        set_key: (key, value, why) -> sets a derived value, unless the user gave one.

    Raises:
        ValueError: a part of ZERO_SHOT.CUSTOM is missing; TAFENet on other data sets, or another model on these.
    """
    _apply_custom(cfg.ZERO_SHOT.CUSTOM, set_key)
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


def _apply_custom(custom: CfgNode, set_key: Callable[[str, Any, str], None]) -> None:
    files = [custom[key] for key in ("TRAIN", "TEST", "CLASSES")]
    if not any(files):
        return
    absent = [f"ZERO_SHOT.CUSTOM.{key}" for key in ("TRAIN", "TEST") if not custom[key]]
    if absent or not (custom.CLASSES or custom.UNSEEN):
        raise ValueError(
            f"{', '.join(absent or ['ZERO_SHOT.CUSTOM.CLASSES'])} is empty: your own data need all three files, or "
            "TRAIN, TEST and UNSEEN where examples describe the classes (docs/tafe_net.md)."
        )
    shots = 0 if custom.CLASSES else custom.SHOTS
    options = CustomOptions(
        tuple(custom.UNSEEN), custom.STANDARDISE, custom.FOLD, custom.FOLDS, shots, custom.DRAW if shots else 0
    )
    name = CUSTOM
    if options != CustomOptions(folds=custom.FOLDS):  # what they make of the files is another data set
        name += f"_{derive_seed(repr(options)) % 16**6:06x}"
    paths = [str(Path(file).absolute()) for file in files if file]
    register_benchmark(
        name, Benchmark(paths, "", partial(read_custom, options=options), "low_shot" if shots else "zero_shot")
    )
    for split in SPLITS:
        set_key(f"DATASETS.{split.upper()}", (f"{name}_{split}",), f"ZERO_SHOT.CUSTOM.{split.upper()}")
