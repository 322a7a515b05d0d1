"""ConvNet-AIG (Veit and Belongie, ECCV 2018): a block runs by the choice of a small gate with Gumbel noise. It is the
baseline of CDB's Table 2."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.gating import Decision, Trace, Unit
from dyn_d2.gating.cost import linear_cost
from dyn_d2.gating.decisions import gumbel, hard_threshold
from dyn_d2.gating.losses import target_rate_loss
from dyn_d2.utils.modules import ModuleListOf

from detectron2.config import CfgNode

from .base import FIXED, POLICY_REGISTRY, Policy
from .gate_layers import (
    GateNorm,
    ValidArea,
    apply_linear,
    check_positive,
    check_rate,
    check_threshold,
    pool_valid,
    valid_area,
)


class AIGGate(nn.Module):
    """Pooled features -> ``width`` -> batch norm, ReLU -> scores of (skip, run)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, width, bias=False)
        self.norm = GateNorm(width)
        self.scores = nn.Linear(width, 2)
        nn.init.kaiming_normal_(self.hidden.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.scores.weight, std=0.001)
        # About 87 % open at the start.
        with torch.no_grad():
            self.scores.bias.copy_(torch.tensor([0.1, 2.0]))

    def forward(self, pooled: Tensor) -> Tensor:
        """float32 (N, channels) -> float32 (N, 2)."""
        x = apply_linear(self.hidden, pooled)
        with torch.autocast(x.device.type, enabled=False):
            x = self.norm(x[:, :, None, None].to(self.norm.weight.dtype))[:, :, 0, 0]
        return apply_linear(self.scores, F.relu(x))


@POLICY_REGISTRY.register_as("convnet_aig")
class ConvNetAIG(Policy):
    """A gate for each block, and a loss that draws the share of images that run it towards a target."""

    KINDS = ("block",)
    STAGES = ("learn", FIXED)
    FROZEN_STAGES = (FIXED,)
    PROBABILITIES = True

    def __init__(
        self,
        units: Sequence[Unit],
        *,
        targets: Sequence[float],
        width: int = 16,
        temperature: float = 1.0,
        threshold: float = 0.5,
        weight: float = 1.0,
    ) -> None:
        """
        Args:
            units: blocks.
            targets: t_l in (0, 1] of each block, or one for all.
            width: of the gate's hidden layer.
            temperature: of the Gumbel soft-max that gives the gradient.
            threshold: in evaluation a block runs where its probability is greater.
            weight: of the rate loss.
        """
        super().__init__(units)
        if len(targets) not in (1, len(self.units)):
            raise ValueError(
                f"MODEL.POLICY.AIG.TARGET_RATES has {len(targets)} rates, the backbone {len(self.units)} gated blocks: "
                "give one rate for each, or none to use MODEL.POLICY.TARGET_RATE."
            )
        key = "TARGET_RATE" if len(targets) == 1 else "AIG.TARGET_RATES"
        targets = [check_rate(key, rate) for rate in targets]
        self.targets = targets * len(self.units) if len(targets) == 1 else targets
        self.temperature = check_positive("TEMPERATURE", temperature)
        self.threshold = check_threshold(threshold)
        self.weight = weight
        self.gates = ModuleListOf(AIGGate(unit.channels, width) for unit in self.units)

    @classmethod
    def from_config(cls, cfg: CfgNode, units: Sequence[Unit]) -> dict[str, Any]:
        policy = cfg.MODEL.POLICY
        return {
            "targets": list(policy.AIG.TARGET_RATES) or [policy.TARGET_RATE],
            "width": policy.AIG.WIDTH,
            "temperature": policy.TEMPERATURE,
            "threshold": policy.THRESHOLD,
            "weight": policy.AIG.LOSS_WEIGHT,
        }

    def begin(self, images: Tensor, image_sizes: Sequence[tuple[int, int]] | None) -> ValidArea | None:
        return valid_area(images, image_sizes)

    def decide(self, index: int, features: Tensor, state: ValidArea | None) -> Decision:
        logits = self.gates[index](pool_valid(features, state))
        if self.training:
            return gumbel(logits, self.temperature)
        return hard_threshold(logits.softmax(-1)[:, 1], self.threshold)

    def decision_cost(self, index: int, height: int, width: int) -> float:
        return linear_cost(self.gates[index].hidden, self.gates[index].scores)

    def losses(self, trace: Trace, task: dict[str, Tensor]) -> dict[str, Tensor]:
        gates = [step.decision.gate for step in trace.steps]
        return {"loss_rate": self.weight * target_rate_loss(gates, self.targets)}
