"""Configs: a tree of keys with defaults, merged from yaml files and the command line."""

from .config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg

__all__ = ["CfgNode", "configurable", "get_cfg", "global_cfg", "set_global_cfg"]

_LEFT_OUT = {
    **dict.fromkeys(["LazyCall", "LazyConfig", "instantiate"], "Python configs (LazyConfig); use yaml configs"),
    **dict.fromkeys(["downgrade_config", "upgrade_config"], "the conversion of version-1 configs"),
}


def __getattr__(name: str):
    if name in _LEFT_OUT:
        raise ImportError(
            f"detectron2.config.{name}: the embedded engine of dyn_d2 leaves out {_LEFT_OUT[name]}, "
            "or install Detectron2 itself."
        )
    raise AttributeError(f"module 'detectron2.config' has no attribute '{name}'")
