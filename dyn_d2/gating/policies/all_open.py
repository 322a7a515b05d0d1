"""Everything runs: the plain network, with a trace."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dyn_d2.gating import Decision, Unit

from detectron2.config import CfgNode

from .base import POLICY_REGISTRY, Policy


@POLICY_REGISTRY.register_as("all_open")
class AllOpen(Policy):
    """No gate and no cost."""

    @classmethod
    def from_config(cls, cfg: CfgNode, units: Sequence[Unit]) -> dict[str, Any]:
        return {}

    def decide(self, index: int, features: Tensor, state: None) -> Decision:
        return Decision(torch.ones(self.gate_shape(index, features), device=features.device))
