"""COCO and LVIS score by category, in the order of the json's ids; a data set's classes may stand in another order."""

import logging
from typing import Any

import numpy as np

from detectron2.data import Metadata

logger = logging.getLogger(__name__)

_CLASS_AXIS = {"precision": 2, "scores": 2, "recall": 1}


def in_class_order(run: Any, metadata: Metadata) -> None:
    """Turn the arrays of an accumulated ``COCOeval`` or ``LVISEval``, in place, so that class k of the data set is
    entry k of their class axis; its list of categories with them, so that a second time changes nothing.

    A run whose categories are not those of the data set stays as it is, which is said.
    """
    to_class = metadata.get("thing_dataset_id_to_contiguous_id", None)
    name = "catIds" if hasattr(run.params, "catIds") else "cat_ids"
    ids = [int(category) for category in getattr(run.params, name)]
    if not to_class:
        return
    if set(ids) != set(to_class):
        logger.warning(
            f"{metadata.name}: the categories that were scored are not those of the data set's classes: AP of single "
            "classes may stand at wrong names."
        )
        return
    order = np.argsort([to_class[category] for category in ids])
    setattr(run.params, name, [ids[k] for k in order])
    for key, axis in _CLASS_AXIS.items():
        if key in run.eval:
            run.eval[key] = np.take(run.eval[key], order, axis)
