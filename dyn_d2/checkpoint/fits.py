"""Whether loaded weights are for the classes and the images of this run: both can differ though all shapes fit."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from dyn_d2.modeling.answers import head_classes, knows_its_labels

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from .checkpointer import CheckpointError, LoadReport

logger = logging.getLogger(__name__)

_REMEDY = "dyn-d2 surgery fits the rows of a detector to classes by name; or give the data the order of the file"


def require_same_classes(model: nn.Module, report: LoadReport, datasets: Sequence[str], *, start: bool = False) -> None:
    """The rows of the model's head stand for the classes of the data sets, in their order.

    Looks at nothing where the file does not name its classes, where a data set has none, where classes are no rows of
    a head, or where the head did not come from the file.

    Args:
        report: of the load.
        start: of a training, in which rows for classes of which the data knows none are nothing but a start; the log
            says so.

    Raises:
        CheckpointError: names the first difference and the remedy.
    """
    key = _kind_of_classes(model)
    named = list(report.metadata.get(key) or ()) if key else []
    if not named or all(name.startswith("backbone.") for name in report.loaded):
        return
    rows = head_classes(model) if key == "classes" else None
    if rows is not None and len(named) != rows and not report.mismatched:
        raise CheckpointError(
            f"{report.source} names {len(named)} classes ({_listed(named)}) for {rows} rows of its head: it was edited."
        )
    for dataset in datasets:
        wanted = list(MetadataCatalog.get(dataset).get("thing_classes" if key == "classes" else key, None) or ())
        if not wanted or wanted == named or len(wanted) != len(named):  # another number: the shapes tell
            continue
        if start and not set(wanted) & set(named):
            logger.warning(
                f"the head of {report.source} starts as one for {_listed(named)}; data set {dataset} has other classes."
            )
            continue
        i = next(i for i, pair in enumerate(zip(named, wanted, strict=True)) if pair[0] != pair[1])
        how = "the same classes in another order" if set(wanted) == set(named) else "other classes"
        raise CheckpointError(
            f"the rows of {report.source} are for {_listed(named)}; data set {dataset} has {how}: class {i} is "
            f"{named[i]!r} in the file, {wanted[i]!r} in the data. {_REMEDY}."
        )


def _kind_of_classes(model: nn.Module) -> str:
    """Under which name a checkpoint lists the classes of the rows of ``model``; "" where they are no rows."""
    if not hasattr(model, "sem_seg_head"):
        return "classes" if head_classes(model) is not None else ""
    return "" if knows_its_labels(model) else "stuff_classes"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:30])) + (", ..." if len(names) > 30 else "")


def differing_settings(cfg: CfgNode, trained: Mapping[str, Any]) -> list[str]:
    """``KEY VALUE`` of the keys that published weights were trained with otherwise than ``cfg`` has it.

    Numbers count as equal up to one hundredth of the larger.
    """
    return [f"{key} {value}" for key, value in trained.items() if not _alike(_value(cfg, key), value)]


def _value(cfg: CfgNode, key: str) -> Any:
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    return node


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_alike(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) or isinstance(other, float):
        return abs(one - other) <= 0.01 * max(abs(one), abs(other))
    return one == other


def warn_of_settings(cfg: CfgNode, report: LoadReport) -> None:
    """Log which keys make images and network what published weights were trained with, where ``cfg`` has others."""
    other = differing_settings(cfg, report.settings)
    if other:
        logger.warning(
            f"{report.source} was trained otherwise than the config says, which costs accuracy that no loss shows, "
            f"most of all where layers are frozen. Set {', '.join(other)}."
        )
