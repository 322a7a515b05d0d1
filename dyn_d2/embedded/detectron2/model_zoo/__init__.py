# ruff: noqa: F401
"""The configs and weights that Detectron2 published, by its names."""

from .model_zoo import get, get_checkpoint_url, get_config, get_config_file
