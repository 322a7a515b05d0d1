"""A fixed part of the network, the same for every image: what a dynamic choice has to beat."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from math import floor
from typing import Any

import torch
from torch import Tensor

from dyn_d2.gating import Decision, Unit
from dyn_d2.gating.decisions import fixed

from detectron2.config import CfgNode

from .base import POLICY_REGISTRY, Policy
from .gate_layers import check_choice, check_rate


def kept(count: int, rate: float, order: str) -> list[bool]:
    """Which of ``count`` elements stay open: ``rate`` of them, rounded; the first ones for ``order`` "last" (the last
    are closed), evenly spread for "even"."""
    number = round(rate * count)
    if order == "last":
        return [index < number for index in range(count)]
    # The small number keeps k * number / count from ending just below an integer that it equals.
    reached = [floor(index * number / count + 1e-9) for index in range(count + 1)]
    return [after > before for before, after in zip(reached, reached[1:], strict=False)]


@POLICY_REGISTRY.register_as("fixed")
class Fixed(Policy):
    """Units closed by name, or a share of blocks (or of the groups and channels of each unit) closed by position."""

    def __init__(
        self, units: Sequence[Unit], *, closed: Sequence[str] = (), rate: float = 1.0, order: str = "last"
    ) -> None:
        """
        Args:
            units: of any kind.
            closed: names of units to close, "*" and "?" allowed; empty to go by ``rate``.
            rate: share that stays open, in (0, 1].
            order: "last" closes the last ones, "even" evenly spread ones.
        """
        super().__init__(units)
        check_choice("FIXED.ORDER", order, ("last", "even"))
        check_rate("TARGET_RATE", rate)
        names = [unit.name for unit in self.units]
        for pattern in closed:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(f"MODEL.POLICY.FIXED.CLOSED names {pattern!r}, but the units are {', '.join(names)}.")
        if closed:
            opened = [[not any(fnmatchcase(u.name, p) for p in closed)] * u.size for u in self.units]
        elif all(unit.kind == "block" for unit in self.units):
            opened = [[keep] for keep in kept(len(self.units), rate, order)]
        else:
            opened = [kept(unit.size, rate, order) for unit in self.units]
        for index, choice in enumerate(opened):
            self.register_buffer(f"open_{index}", torch.tensor(choice), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, units: Sequence[Unit]) -> dict[str, Any]:
        policy = cfg.MODEL.POLICY
        return {"closed": list(policy.FIXED.CLOSED), "rate": policy.TARGET_RATE, "order": policy.FIXED.ORDER}

    def decide(self, index: int, features: Tensor, state: None) -> Decision:
        choice = getattr(self, f"open_{index}")
        shape = self.gate_shape(index, features)
        return fixed(choice.expand(shape[0], len(choice)).reshape(shape))
