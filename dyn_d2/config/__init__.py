"""The config: every key that dyn_d2 adds to Detectron2's, how it is read, and what follows from it."""

from dyn_d2.method import methods

from detectron2.config import CfgNode as CN

from .keys.classification import add_classification_keys, add_classifier_keys
from .keys.data import add_data_keys
from .keys.feature_cache import add_feature_cache_keys
from .keys.few_shot import add_detector_keys, add_few_shot_keys
from .keys.masks import add_partial_mask_keys, add_retina_mask_keys
from .keys.segmentation import add_segmentation_keys
from .keys.timm import add_timm_keys
from .keys.training import add_run_keys, add_solver_keys


def add_dyn_d2_config(cfg: CN) -> None:
    """Add the keys of dyn_d2 and of all its methods to ``cfg``; every command calls it right after ``get_cfg()``."""
    add_run_keys(cfg)
    add_solver_keys(cfg)
    add_data_keys(cfg)
    add_detector_keys(cfg)
    add_few_shot_keys(cfg)
    add_feature_cache_keys(cfg)
    add_classifier_keys(cfg)
    add_classification_keys(cfg)
    add_partial_mask_keys(cfg)
    add_retina_mask_keys(cfg)
    add_segmentation_keys(cfg)
    add_timm_keys(cfg)
    for method in methods():
        method.add_keys(cfg)
