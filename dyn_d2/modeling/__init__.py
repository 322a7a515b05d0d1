"""Importing this package registers dyn_d2's model parts in Detectron2's registries."""

from . import backbone, meta_arch, policy, roi_heads, sem_seg  # noqa: F401  only registration
