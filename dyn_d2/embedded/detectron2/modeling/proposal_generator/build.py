"""The registry of proposal generators."""

from torch import nn

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.left_out import left_out
from detectron2.utils.registry import Registry

PROPOSAL_GENERATOR_REGISTRY = Registry("PROPOSAL_GENERATOR")
PROPOSAL_GENERATOR_REGISTRY.__doc__ = (
    "Proposal generators by name; an entry is called with (cfg, dict of feature name -> ShapeSpec)."
)
_LEFT_OUT = {"PrecomputedProposals": "precomputed proposals", "RRPN": "rotated boxes"}


def build_proposal_generator(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build the generator that ``cfg.MODEL.PROPOSAL_GENERATOR.NAME`` names."""
    name = cfg.MODEL.PROPOSAL_GENERATOR.NAME
    if name in _LEFT_OUT and name not in PROPOSAL_GENERATOR_REGISTRY:
        raise left_out(f"MODEL.PROPOSAL_GENERATOR.NAME={name}", _LEFT_OUT[name])
    return PROPOSAL_GENERATOR_REGISTRY.get(name)(cfg, input_shape)
