"""FEATURE_CACHE: what frozen parts of a model give is computed once for each image and view.

Here for training and evaluation of the ROI heads of a detector whose feature maps and proposals are frozen; other
models answer for themselves (``keep_features`` of ``modeling/answers.py``).
"""

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from dyn_d2.data.views import View, ViewMapper
from dyn_d2.method import methods
from dyn_d2.modeling.heads_alone import BEFORE_HEADS, HeadsAlone, not_heads_alone
from dyn_d2.utils.tensor_store import TensorStore

from detectron2.config import CfgNode

from .feature_cache import ALONE, CacheError, FeatureCache, attach, count_all_views, frozen_fingerprint, loader_problem

logger = logging.getLogger(__name__)

_OF_HEADS = (
    "MODEL.WEIGHTS",
    "MODEL.DEVICE",
    "MODEL.FREEZE",
    "MODEL.MASK_ON",
    "MODEL.ROI_HEADS",
    "MODEL.ROI_BOX_HEAD",
    "MODEL.ROI_MASK_HEAD",
    "MODEL.RETINANET",
    "MODEL.SEM_SEG_HEAD",
    "MODEL.TIMM.WEIGHTS",
)
_MAKES_MAPS = ("INPUT.FORMAT", "MODEL.ROI_HEADS.IN_FEATURES")


def maps_folder(cfg: CfgNode) -> str:
    """FEATURE_CACHE.DIR, or its place below OUTPUT_DIR."""
    return cfg.FEATURE_CACHE.DIR or os.path.join(os.path.abspath(cfg.OUTPUT_DIR), "feature_maps")


def keep_frozen(cfg: CfgNode, model: nn.Module, loader: Any) -> None:
    """Have ``model`` compute in training no more than what learns, where FEATURE_CACHE.MODE asks for that and nothing
    before it moves, and ``loader`` leave out images that are not needed. Elsewhere nothing changes; the log says which.

    Raises:
        CacheError: FEATURE_CACHE.MODE is on, and the features change.
    """
    keys = cfg.FEATURE_CACHE
    if keys.MODE == "off" or hasattr(model, ALONE):
        return
    own: Callable[[CfgNode, Any], str] | None = getattr(model, "keep_features", None)
    problem = "VIS_PERIOD draws the images" if cfg.VIS_PERIOD else ""
    problem = problem or (own(cfg, loader) if own else _heads_alone(cfg, model, loader))
    if problem and keys.MODE == "on":
        parts = "the blocks" if own else "[backbone, proposal_generator]"
        raise CacheError(
            f"FEATURE_CACHE.MODE is on, but features cannot be kept: {problem}. Use auto, or freeze {parts} by "
            "MODEL.FREEZE."
        )
    if problem:
        logger.info(f"FEATURE_CACHE.MODE auto: features are computed at each step, as {problem}")


def _heads_alone(cfg: CfgNode, model: nn.Module, loader: Any) -> str:
    """``keep_features`` of a detector."""
    keys = cfg.FEATURE_CACHE
    if problem := not_heads_alone(model) or loader_problem(loader):
        return problem
    apart = (*_OF_HEADS, *(node for method in methods() for node in method.nodes_of_heads))
    fingerprint = partial(frozen_fingerprint, parts=BEFORE_HEADS, apart=apart, counted=_MAKES_MAPS)
    store = TensorStore(maps_folder(cfg), keys.GB, "FEATURE_CACHE.GB")
    cache = FeatureCache(model, store, partial(fingerprint, cfg), BEFORE_HEADS, partial(_view_bytes, cfg, model))
    needed = cache.needs(count_all_views(loader), training=True)
    logger.info(f"only ROI heads learn: feature maps and proposals are kept in {store.folder}, up to {needed:.2g} GB")
    if needed > keys.GB:
        logger.warning(f"FEATURE_CACHE.GB is {keys.GB:g}, feature maps may take {needed:.2g} GB: entries come and go")
    attach(model, HeadsAlone(model, cache))
    loader.dataset.mapper = ViewMapper(loader.dataset.mapper, partial(_kept, cache))
    return ""


def _kept(cache: FeatureCache, view: View) -> bool:
    return cache.has(view, training=True)


def _view_bytes(cfg: CfgNode, model: Any, training: bool) -> int:
    """What a view takes at most: maps in 16 bits of an image of the largest size, boxes and scores of proposals."""
    side = cfg.INPUT.MAX_SIZE_TRAIN if training else cfg.INPUT.MAX_SIZE_TEST
    short = max(cfg.INPUT.MIN_SIZE_TRAIN) if training else cfg.INPUT.MIN_SIZE_TEST
    pixels = side * min(short or side, side)
    shapes = model.backbone.output_shape()
    maps = sum(2 * shapes[name].channels * pixels / shapes[name].stride ** 2 for name in model.roi_heads.in_features)
    return int(maps) + 20 * model.proposal_generator.post_nms_topk[training]
