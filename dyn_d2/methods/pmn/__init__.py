"""PMN: at which module an image stops, and which level of a concept tree each module recognises.

Liang, Learning Personalized Modular Network Guided by Structured Knowledge, CVPR 2019; equation and table numbers are
its.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from dyn_d2.hierarchy.files import take_carried, trees_to_carry
from dyn_d2.method import Method, register_method

from detectron2.config import CfgNode

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
