"""Deciding How to Decide (McGill and Perona 2017): which path of a multi-path network an image takes."""

from dyn_d2.method import Method, register_method

from detectron2.config import CfgNode

from . import backbone, config, meta_arch, policy  # noqa: F401  the parts register themselves


@register_method
class MultiPath(Method):
    name = "multipath"
    ranges = config.RANGES

    def add_keys(self, cfg: CfgNode) -> None:
        config.add_keys(cfg)
