"""TAFE-Net (Wang et al. 2019): classes given by a description."""

from . import data, meta_arch  # noqa: F401  only registration
