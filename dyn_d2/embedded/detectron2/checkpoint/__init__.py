# ruff: noqa: F401
"""Saving and loading of models, also of published ones with foreign names."""

from fvcore.common.checkpoint import Checkpointer, PeriodicCheckpointer

from .detection_checkpoint import DetectionCheckpointer
