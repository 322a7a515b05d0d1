"""Checkpoints that describe themselves, and the surgery between the stages of few-shot training."""

from .checkpointer import CheckpointError, DynCheckpointer, LoadReport, describe, read_checkpoint

__all__ = ["CheckpointError", "DynCheckpointer", "LoadReport", "describe", "read_checkpoint"]
