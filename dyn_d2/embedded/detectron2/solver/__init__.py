# ruff: noqa: F401
"""Optimizers and learning-rate schedules made from a config."""

from detectron2.left_out import refusal_of

from .build import build_lr_scheduler, build_optimizer, get_default_optimizer_params
from .lr_scheduler import LRMultiplier, LRScheduler, WarmupParamScheduler

__getattr__ = refusal_of(__name__)
