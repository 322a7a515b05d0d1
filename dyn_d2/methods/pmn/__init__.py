"""PMN: at which module an image stops, and which level of a concept tree each module recognises.

Liang, Learning Personalized Modular Network Guided by Structured Knowledge, CVPR 2019; equation and table numbers are
its.
"""

from dyn_d2.method import Method, register_method

from detectron2.config import CfgNode

from . import config, head, policy  # noqa: F401  the parts register themselves


@register_method
class PMN(Method):
    name = "pmn"
    ranges = config.RANGES

    def add_keys(self, cfg: CfgNode) -> None:
        config.add_keys(cfg)
