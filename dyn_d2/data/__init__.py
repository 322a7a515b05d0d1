"""Data sets of dyn_d2; importing this package registers them."""

from . import classification, digit_scenes, semantic  # noqa: F401  only registration
