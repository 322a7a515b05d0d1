"""Deciding How to Decide (McGill and Perona 2017): which path of a multi-path network an image takes."""

from . import backbone, meta_arch, policy  # noqa: F401  only registration
