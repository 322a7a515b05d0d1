"""One output directory, one run: what must not change where a run goes on, and which keys do not matter."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dyn_d2.utils.errors import UserError

from detectron2.config import CfgNode

from .read import as_yaml, flatten, read_cfg, read_yaml

logger = logging.getLogger(__name__)

# Keys, or nodes of keys, that may differ between the config of an output directory and a run that goes on there, and
# whether a finished training would have given the same model with another value.
FREE_KEYS = {
    "OUTPUT_DIR": True,
    "MODEL.WEIGHTS": True,
    "MODEL.DEVICE": True,
    "TEST": True,
    "VIS_PERIOD": True,
    "DATALOADER.NUM_WORKERS": True,
    "INPUT.PARTIAL_MASKS.CACHE": True,
    "FEW_SHOT.CACHE": True,
    "FEW_SHOT.CACHE_GB": True,
    "FEW_SHOT.CACHE_DIR": True,
    "FEATURE_CACHE.GB": True,
    "FEATURE_CACHE.DIR": True,
    "SOLVER.CHECKPOINT_PERIOD": True,
    "SOLVER.PREFLIGHT": True,
    "SOLVER.ALLOW_CHANGED_INPUTS": True,
    "SOLVER.PROCESS_TIMEOUT": True,
    "SOLVER.FIND_UNUSED_PARAMETERS": True,
    "SOLVER.WRITERS": True,
    "SOLVER.PROJECT": True,
    "VERSION": False,
    "DATASETS.TEST": False,
    "SOLVER.MAX_ITER": False,
    "SOLVER.STEPS": False,
    "CUDNN_BENCHMARK": False,
    "SEED": False,
}
NEUTRAL_KEYS = tuple(key for key, same_model in FREE_KEYS.items() if same_model)
# Keys of TEST that change no number of an evaluation; the others do.
_HARMLESS_IN_TEST = ("TEST.IMS_PER_BATCH", "TEST.EXPECTED_RESULTS", "TEST.ALLOW_PARTIAL_WEIGHTS")


def is_below(key: str, names: Iterable[str]) -> bool:
    """Whether ``key`` is one of ``names``, or of a node among them."""
    return any(key == name or key.startswith(name + ".") for name in names)


class OutputDirError(UserError):
    """OUTPUT_DIR holds a run with another config or stage."""


def defaults() -> dict[str, Any]:
    """All keys with their default values, as a config file has them."""
    return flatten(as_yaml(read_cfg()))


def differing_keys(old: dict[str, Any], new: CfgNode, free: Iterable[str] = tuple(FREE_KEYS)) -> list[str]:
    """``KEY: old -> new`` for the keys in which two configs of one output directory must not differ."""
    before, after = flatten(old), flatten(as_yaml(new))  # the file knows no tuples
    before = defaults() | before  # an older version lacked keys
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if is_below(key, free):
            continue
        if before.get(key) != after.get(key):
            lines.append(f"{key}: {before.get(key)} -> {after.get(key)}")
    return lines


def differing_results(old: dict[str, Any], new: CfgNode) -> list[str]:
    """The same for keys of TEST with which the results of one model are others (and of SOLVER.BEST, the model)."""
    harmless = _HARMLESS_IN_TEST + (() if new.SOLVER.BEST.METRIC else ("TEST.EVAL_PERIOD",))
    lines = differing_keys(old, new, harmless)
    return [line for line in lines if is_below(line.partition(":")[0], ("TEST",))]


def check_is_folder(path: str) -> None:
    """Whether OUTPUT_DIR is a folder, or can become one.

    Raises:
        OutputDirError: it, or a folder above it, is a file.
    """
    there = next((part for part in (Path(path), *Path(path).parents) if part.exists()), None)
    if there is not None and not there.is_dir():
        raise OutputDirError(f"OUTPUT_DIR {path} cannot be made: {there} is a file. Choose another OUTPUT_DIR.")


def check_output_dir(cfg: CfgNode, resume: bool) -> None:
    """Refuse to mix two runs in one directory.

    Raises:
        OutputDirError: OUTPUT_DIR holds checkpoints of another config or stage.
    """
    saved = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    if not os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")) or not os.path.isfile(saved):
        return
    changed = differing_keys(read_yaml(saved), cfg)
    if changed:
        raise OutputDirError(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} holds a run with another config:\n  "
            + "\n  ".join(changed[:20])
            + ("\n  ..." if len(changed) > 20 else "")
            + "\nChoose another OUTPUT_DIR"
            + (", or give the old values to resume." if resume else ".")
        )
    if not resume:
        logger.warning(
            f"OUTPUT_DIR {cfg.OUTPUT_DIR} holds a run with this config; starting afresh replaces it "
            "(--resume would go on from its last checkpoint)"
        )
