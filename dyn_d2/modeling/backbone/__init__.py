"""Backbones of others; importing this package registers them in Detectron2's BACKBONE registry."""

from . import timm  # noqa: F401  only registration
