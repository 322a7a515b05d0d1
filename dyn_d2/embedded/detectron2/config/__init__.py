# ruff: noqa: F401
"""Configs: a tree of keys with defaults, merged from yaml files and the command line."""

from detectron2.left_out import refusal_of

from .config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg

__getattr__ = refusal_of(__name__)
