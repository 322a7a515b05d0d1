"""DSSPN: semantic segmentation by a tree of semantic neurons.

Liang, Zhou and Xing, Dynamic-structured Semantic Propagation Network, CVPR 2018; equation and table numbers are its.
"""

from dyn_d2.config.derive import SetKey
from dyn_d2.method import Method, register_method

from detectron2.config import CfgNode

from . import config, head, meta_arch  # noqa: F401  the parts register themselves


@register_method
class DSSPN(Method):
    name = "dsspn"
    ranges = config.RANGES

    def add_keys(self, cfg: CfgNode) -> None:
        config.add_keys(cfg)

    def derive(self, cfg: CfgNode, given: set[str], set_key: SetKey) -> None:
        """The tree of one's own label maps is that of the head."""
        if cfg.DATASETS.CUSTOM.FORMAT == "semantic" and cfg.DATASETS.CUSTOM.TREE:
            set_key("MODEL.DSSPN.TREE", cfg.DATASETS.CUSTOM.TREE, "DATASETS.CUSTOM.TREE")
