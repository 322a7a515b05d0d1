"""Every config key that dyn_d2 adds to Detectron2's, with its default and what it does."""

from dyn_d2.gating.config import (
    add_baseline_policy_keys,
    add_cdb_keys,
    add_deepmoe_keys,
    add_gated_keys,
    add_multipath_keys,
    add_pmn_keys,
    add_policy_keys,
    add_skipnet_keys,
)

from detectron2.config import CfgNode as CN

from .classification import add_classification_keys, add_classifier_keys, add_tafe_net_keys
from .detection import (
    add_detector_keys,
    add_few_shot_keys,
    add_retina_mask_keys,
    add_reweighting_keys,
    add_shapeprop_keys,
    add_yolo_keys,
)
from .segmentation import add_dsspn_keys, add_layer_cascade_keys, add_segmentation_keys
from .timm import add_timm_keys
from .training import add_run_keys, add_stage_keys


def add_dyn_d2_config(cfg: CN) -> None:
    """Add the keys of dyn_d2 to ``cfg``; every tool calls it right after ``get_cfg()``."""
    add_detector_keys(cfg)
    add_few_shot_keys(cfg)
    add_run_keys(cfg)
    add_classifier_keys(cfg)
    add_classification_keys(cfg)
    add_stage_keys(cfg)
    add_gated_keys(cfg)
    add_policy_keys(cfg)
    add_skipnet_keys(cfg)
    add_deepmoe_keys(cfg)
    add_cdb_keys(cfg)
    add_pmn_keys(cfg)
    add_baseline_policy_keys(cfg)
    add_multipath_keys(cfg)
    add_shapeprop_keys(cfg)
    add_retina_mask_keys(cfg)
    add_layer_cascade_keys(cfg)
    add_segmentation_keys(cfg)
    add_dsspn_keys(cfg)
    add_yolo_keys(cfg)
    add_reweighting_keys(cfg)
    add_tafe_net_keys(cfg)
    add_timm_keys(cfg)
