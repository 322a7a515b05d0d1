"""DSSPN: semantic segmentation by a tree of semantic neurons (Liang, Zhou and Xing 2018)."""

from . import head, meta_arch  # noqa: F401  only registration
