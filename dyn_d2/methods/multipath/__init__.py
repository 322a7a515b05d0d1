"""Deciding How to Decide: which path of a multi-path network an image takes.

McGill and Perona, Deciding How to Decide: Dynamic Routing in Artificial Neural Networks, ICML 2017.
"""

from dyn_d2.method import Method, register_method

from detectron2.config import CfgNode

from . import backbone, config, meta_arch, policy  # noqa: F401  the parts register themselves
from .hybrid import register_hybrid

register_hybrid()


@register_method
class MultiPath(Method):
    name = "multipath"
    ranges = config.RANGES

    def add_keys(self, cfg: CfgNode) -> None:
        config.add_keys(cfg)
