"""From the keys of DATASETS.CUSTOM to registered data sets, and what follows from them for the rest of a config."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dyn_d2.data.classification.sets import ensure_classes
from dyn_d2.data.few_shot.benchmarks import BENCHMARKS
from dyn_d2.data.parts import HELD_OUT, register_parts
from dyn_d2.hierarchy import written_out

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from .boxes import register_coco, register_voc, register_yolo
from .keys import KEY, PARTS, CustomData
from .labels import register_folders_of, register_label_maps

FORMATS = {
    "coco": register_coco,
    "voc": register_voc,
    "yolo": register_yolo,
    "semantic": register_label_maps,
    "folders": register_folders_of,
}
BOXES = ("coco", "voc", "yolo")


def custom_sets(cfg: CfgNode) -> dict[str, str]:
    """ "train", "val" and "test" -> the name of the registered set, for those that DATASETS.CUSTOM has."""
    data = CustomData.of(cfg)
    return {part: data.name_of(part) for part in data.parts} if data else {}


def register_custom(cfg: CfgNode, files: bool = True) -> tuple[str, ...]:
    """Register the data sets of DATASETS.CUSTOM, in place of earlier ones of the same names.

    Args:
        files: look at the files. Without, the names of classes have to be in the keys, as a config that was derived has
            them: enough for the model of a checkpoint.

    Returns:
        The names of the classes.

    Raises:
        ValueError: keys are missing or contradict each other, or an annotation file cannot be used.
        FileNotFoundError: files or folders are missing.
    """
    data = CustomData.of(cfg)
    if data is None:
        return ()
    if data.name in BENCHMARKS:
        raise ValueError(f"{KEY}.NAME is {data.name!r}, the name of a few-shot benchmark: choose another one.")
    if files:
        data.require_keys()
    return FORMATS[data.format](data, files)


def apply_custom(cfg: CfgNode, set_key: Callable[[str, Any, str], None]) -> None:
    """Register DATASETS.CUSTOM, and set what follows from it; called before few-shot sets are made of it.

    DATASETS.CUSTOM.CLASSES and TREE get what the files say, so that the config, and with it a checkpoint, needs no
    file to name its classes.

    Raises:
        ValueError, FileNotFoundError: from ``register_custom``.
    """
    data = CustomData.of(cfg)
    if data is None:
        return
    if data.tree:
        cfg.DATASETS.CUSTOM.TREE = written_out(data.tree)
    classes = list(register_custom(cfg))
    cfg.DATASETS.CUSTOM.CLASSES = classes
    if Path(data.tree).is_file():
        for part in data.parts:  # for messages; a Path, as fingerprints follow texts that name files
            MetadataCatalog.get(data.name_of(part)).tree_file = Path(data.tree)
    if cfg.FEW_SHOT.BENCHMARK:
        if data.format not in BOXES:
            raise ValueError(f"FEW_SHOT.BENCHMARK is {cfg.FEW_SHOT.BENCHMARK!r}, but {KEY}.FORMAT {data.format} has no "
                             "boxes: use coco, voc or yolo, or leave FEW_SHOT.BENCHMARK empty.")  # fmt: skip
        for key in ("HOLD_OUT", "VAL"):
            if cfg.DATASETS.CUSTOM[key]:
                raise ValueError(f"{KEY}.{key} is given, but few-shot trainings (FEW_SHOT.BENCHMARK) have no data to "
                                 "choose on and use all of TRAIN. Leave it out; to try settings, name other images as "
                                 "TEST.")  # fmt: skip
        return  # which names its own sets
    why = f"{KEY}.FORMAT {data.format}"
    sets = {part: (data.name_of(part),) if part in data.parts else () for part in PARTS}
    if cfg.DATASETS.CUSTOM.HOLD_OUT:
        sets["train"], sets["val"] = _hold_out(cfg, data)
    for part, names in sets.items():
        if part != "val" or names:
            set_key(f"DATASETS.{part.upper()}", names, why)
    for key in _class_counts(data.format):
        set_key(key, len(classes), why)
    if data.format == "semantic":
        set_key("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", data.ignore, f"{KEY}.IGNORE")


def _class_counts(kind: str) -> tuple[str, ...]:
    if kind in BOXES:
        return "MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES"
    return ("MODEL.SEM_SEG_HEAD.NUM_CLASSES",) if kind == "semantic" else ("MODEL.IMAGE_CLASSIFIER.NUM_CLASSES",)


def _hold_out(cfg: CfgNode, data: CustomData) -> tuple[tuple[str], tuple[str]]:
    keys, name = cfg.DATASETS.CUSTOM, data.name_of("train")
    if keys.VAL:
        raise ValueError(f"{KEY}.VAL names data to choose on, and HOLD_OUT {keys.HOLD_OUT} takes some of TRAIN for it: "
                         "give one of them.")  # fmt: skip
    if data.format == "folders":
        ensure_classes(name)  # which the parts copy
    fit, held_out = register_parts(name, keys.HOLD_OUT, masks=cfg.MODEL.MASK_ON)
    MetadataCatalog.get(held_out).split = HELD_OUT
    return (fit,), (held_out,)
