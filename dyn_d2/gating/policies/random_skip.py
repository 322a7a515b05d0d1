"""Skipping at random in training and evaluation: SDV, the variant of stochastic depth (Huang et al., ECCV 2016) that
SkipNet is compared with (Fig. 2.9, see the sources in ``policies/__init__.py``)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dyn_d2.gating import Decision, Unit

from detectron2.config import CfgNode

from .base import POLICY_REGISTRY, Policy
from .gate_layers import check_choice, check_rate


def survival_rates(count: int, rate: float, schedule: str) -> list[float]:
    """The probability of each of ``count`` units to run; their mean is ``rate``.

    "constant" is the same for all. "linear" falls linearly with depth from almost 1, as stochastic depth does:
    1 - l / L (1 - p_L) for unit l of L.

    Raises:
        ValueError: "linear" cannot reach the rate, because p_L would be negative.
    """
    if schedule == "constant":
        return [rate] * count
    last = 1 - (1 - rate) * 2 * count / (count + 1)
    if last < 0:
        raise ValueError(
            f"MODEL.POLICY.TARGET_RATE is {rate}: with RANDOM.SCHEDULE linear it is at least "
            f"{1 - (count + 1) / (2 * count):.3f} for {count} units; use the schedule constant."
        )
    return [1 - (index + 1) / count * (1 - last) for index in range(count)]


@POLICY_REGISTRY.register_as("random_skip")
class RandomSkip(Policy):
    """Each image and each element of each unit draws for itself, from torch's global generator."""

    draws = True

    def __init__(self, units: Sequence[Unit], *, rate: float, schedule: str = "constant") -> None:
        """
        Args:
            units: of any kind.
            rate: mean share that runs, in (0, 1].
            schedule: "constant" or "linear", see :func:`survival_rates`.
        """
        super().__init__(units)
        check_choice("RANDOM.SCHEDULE", schedule, ("constant", "linear"))
        self.rates = survival_rates(len(self.units), check_rate("TARGET_RATE", rate), schedule)

    @classmethod
    def from_config(cls, cfg: CfgNode, units: Sequence[Unit]) -> dict[str, Any]:
        return {"rate": cfg.MODEL.POLICY.TARGET_RATE, "schedule": cfg.MODEL.POLICY.RANDOM.SCHEDULE}

    def decide(self, index: int, features: Tensor, state: None) -> Decision:
        prob = torch.full(self.gate_shape(index, features), self.rates[index], device=features.device)
        return Decision(torch.bernoulli(prob), prob)
