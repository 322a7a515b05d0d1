"""DATASETS.CUSTOM: anyone's own data by keys, for every task and without Python."""

from .apply import apply_custom, custom_sets, register_custom

__all__ = ["apply_custom", "custom_sets", "register_custom"]
