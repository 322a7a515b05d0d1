"""DSSPN: semantic segmentation by a tree of semantic neurons.

Liang, Zhou and Xing, Dynamic-structured Semantic Propagation Network, CVPR 2018; equation and table numbers are its.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from dyn_d2.config.derive import SetKey
from dyn_d2.hierarchy.files import take_carried, trees_to_carry
from dyn_d2.method import Method, register_method

from detectron2.config import CfgNode

from . import config, head, meta_arch  # noqa: F401  the parts register themselves


@register_method
class DSSPN(Method):
    name = "dsspn"
    ranges = config.RANGES

    def add_keys(self, cfg: CfgNode) -> None:
        config.add_keys(cfg)

    def describe(self, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """The concept tree, where it is a file of the user's."""
        own = isinstance(getattr(model, "sem_seg_head", None), head.DSSPNHead)
        return {"dsspn_trees": trees_to_carry(cfg.MODEL.DSSPN.TREE)} if own else {}

    def restore(self, described: Mapping[str, Any]) -> None:
        take_carried(described.get("dsspn_trees"))

    def derive(self, cfg: CfgNode, given: set[str], set_key: SetKey) -> None:
        """The tree of one's own label maps is that of the head."""
        if cfg.DATASETS.CUSTOM.FORMAT == "semantic" and cfg.DATASETS.CUSTOM.TREE:
            set_key("MODEL.DSSPN.TREE", cfg.DATASETS.CUSTOM.TREE, "DATASETS.CUSTOM.TREE")
