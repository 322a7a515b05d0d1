"""The registry of proposal generators."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import nn

PROPOSAL_GENERATOR_REGISTRY = Registry("PROPOSAL_GENERATOR")
PROPOSAL_GENERATOR_REGISTRY.__doc__ = (
    "Proposal generators by name; an entry is called with (cfg, dict of feature name -> ShapeSpec)."
)


def build_proposal_generator(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module | None:
    """Build the generator that ``cfg.MODEL.PROPOSAL_GENERATOR.NAME`` names; "PrecomputedProposals" gives None."""
    name = cfg.MODEL.PROPOSAL_GENERATOR.NAME
    if name == "PrecomputedProposals":
        return None
    if name == "RRPN" and name not in PROPOSAL_GENERATOR_REGISTRY:
        raise NotImplementedError(
            "MODEL.PROPOSAL_GENERATOR.NAME: the embedded engine leaves RRPN (rotated boxes) out; install Detectron2"
        )
    return PROPOSAL_GENERATOR_REGISTRY.get(name)(cfg, input_shape)
