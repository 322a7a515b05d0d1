"""What a run was made from, beside its config: data, weights, and the files that keys name.

``inputs_of`` is written into checkpoints and into the ``done.json`` of a stage; ``changed`` says what is another now.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dyn_d2.config.output_dir import NEUTRAL_KEYS, is_below
from dyn_d2.config.read import flatten
from dyn_d2.data.fingerprint import data_fingerprint, differences, file_hash, weights_fingerprint
from dyn_d2.utils.errors import UserError

from detectron2.config import CfgNode

ALLOW = "SOLVER.ALLOW_CHANGED_INPUTS"
_OF_DATA = ("FEW_SHOT.CUSTOM", "FEW_SHOT.SHOTS_DIR", "DATASETS")  # the files of these are those of data sets


class ChangedInputs(UserError):
    """Data, weights or files are others than those that a run began with."""


def inputs_of(cfg: CfgNode, data_sets: Iterable[str], weights: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Fingerprints: {"data": {data set: {part: text}}, "files": {key: hash}, "weights": {file or key: hash}}.

    Args:
        data_sets: registered ones; unknown names and missing files are left out.
        weights: label -> file; by default MODEL.WEIGHTS.
    """
    weights = {"MODEL.WEIGHTS": cfg.MODEL.WEIGHTS} if weights is None else weights
    return {
        "data": {name: data_fingerprint(name) for name in dict.fromkeys(data_sets)},
        "files": _files_of_keys(cfg),
        "weights": {label: text for label, path in weights.items() if (text := weights_fingerprint(path))},
    }


def _files_of_keys(cfg: CfgNode) -> dict[str, str]:
    """Hashes of the files that keys name, such as vectors of classes; what the run itself writes does not count."""
    own, found = Path(cfg.OUTPUT_DIR).resolve(), {}
    for key, value in flatten(cfg).items():
        if is_below(key, (*NEUTRAL_KEYS, *_OF_DATA)):
            continue
        paths = [value] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else []
        for path in paths:
            if isinstance(path, str) and os.path.isfile(path) and own not in Path(path).resolve().parents:
                found[f"{key} {path}"] = file_hash(path)
    return found


def changed(old: Mapping[str, Any], new: Mapping[str, Any], *, weights: bool = True) -> list[str]:
    """Lines that say what differs between two results of ``inputs_of``.

    Args:
        weights: whether those count.
    """
    lines = []
    for name in old.get("data", {}).keys() & new["data"].keys():
        lines += [f"data set {name}, {line}" for line in differences(old["data"][name], new["data"][name])]
    lines += differences(old.get("files", {}), new["files"])
    if weights:
        lines += differences(old.get("weights", {}), new["weights"])
    return sorted(lines)


def listed(lines: list[str], at_most: int = 10) -> str:
    """The lines as the end of a message."""
    return "\n  " + "\n  ".join(lines[:at_most]) + ("\n  ..." if len(lines) > at_most else "")
