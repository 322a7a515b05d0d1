"""Which models Detectron2 published, and how the name of one says what its config is.

A name is FOLDER/FAMILY_BACKBONE[_HEAD][_SCHEDULE][_VARIANT], e.g. COCO-Detection/faster_rcnn_R_101_FPN_3x. Each part
stands for a few keys on top of a base file (``published.yaml``), so that forty configs need no forty files.
"""

import functools
import re
from pathlib import Path
from typing import Any

import yaml

_NAME = re.compile(
    r"(?P<family>[a-z_]+)_(?P<backbone>R_50|R_101|X_101_32x8d)_(?P<head>C4|DC5|FPN)(_(?P<schedule>[13]x))?(_(?P<variant>\w+))?"
)
_BASES = {"C4": "Base-RCNN-C4", "DC5": "Base-RCNN-DilatedC5", "FPN": "Base-RCNN-FPN"}


@functools.cache
def _tables() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))


def checkpoint(name: str) -> str | None:
    """Number and hash of the weights of one of ``names()``; None where none were published."""
    folder, model = name.split("/")
    return _tables()["checkpoints"][folder][model]


def names() -> list[str]:
    """All names, FOLDER/MODEL."""
    return [f"{folder}/{model}" for folder, models in _tables()["checkpoints"].items() for model in models]


def derive(name: str) -> tuple[str, dict[str, Any]]:
    """The base file (without .yaml) and the keys on top of it, for one of ``names()``."""
    folder, model = name.split("/")
    part, tables = _NAME.fullmatch(model).groupdict(), _tables()
    keys: dict[str, Any] = {}
    for table, entry in (
        ("backbones", part["backbone"]),
        ("families", part["family"]),
        ("schedules", part["schedule"]),
        ("variants", part["variant"]),
        ("folders", folder),
    ):
        keys |= tables[table].get(entry, {})
    if (part["family"], part["head"]) == ("rpn", "C4"):
        keys["MODEL.RPN.PRE_NMS_TOPK_TEST"] = 12000
    return "Base-RetinaNet" if part["family"] == "retinanet" else _BASES[part["head"]], keys
