"""PMN: at which module an image stops, and which level of a concept tree each module recognises.

Liang, Learning Personalized Modular Network Guided by Structured Knowledge, CVPR 2019; equation and table numbers are
its.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from dyn_d2.config.derive import SetKey
from dyn_d2.data.custom import custom_sets
from dyn_d2.hierarchy.files import take_carried, trees_to_carry
from dyn_d2.method import Method, register_method

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from . import config, head, policy  # noqa: F401  the parts register themselves


@register_method
class PMN(Method):
    name = "pmn"
    ranges = config.RANGES

    def add_keys(self, cfg: CfgNode) -> None:
        config.add_keys(cfg)

    def describe(self, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """The concept tree, where it is a file of the user's."""
        own = cfg.MODEL.POLICY.NAME == self.name
        return {"pmn_trees": trees_to_carry(cfg.MODEL.POLICY.PMN.TREE)} if own else {}

    def restore(self, described: Mapping[str, Any]) -> None:
        take_carried(described.get("pmn_trees"))

    def derive(self, cfg: CfgNode, given: set[str], set_key: SetKey) -> None:
        """The tree of one's own label maps is that of the levels, and their labels are the classes."""
        custom, own = cfg.DATASETS.CUSTOM, cfg.MODEL.POLICY.PMN
        if cfg.MODEL.POLICY.NAME != self.name or custom.FORMAT != "semantic" or not custom.TREE:
            return
        set_key("MODEL.POLICY.PMN.TREE", custom.TREE, "DATASETS.CUSTOM.TREE")
        if own.TREE == custom.TREE:  # not where the command line names another
            labels = MetadataCatalog.get(next(iter(custom_sets(cfg).values()))).label_set
            set_key("MODEL.POLICY.PMN.LABELS", labels, "DATASETS.CUSTOM.TREE")
