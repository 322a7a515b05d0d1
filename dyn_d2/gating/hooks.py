"""What training needs for gates: parameter groups of their own, and a warning where one collapses."""

import logging
from collections import defaultdict
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dyn_d2.engine.param_groups import scale_rate
from dyn_d2.gating.meta_arch.dynamic import RATE

from detectron2.engine import HookBase

logger = logging.getLogger(__name__)


def separate_gates(optimizer: Optimizer, policy: nn.Module, lr_factor: float = 1.0, weight_decay: float = -1.0) -> None:
    """Give the parameters of ``policy`` groups of their own.

    Args:
        optimizer: changed in place, before its first step.
        lr_factor: multiplies their rate.
        weight_decay: of all of them; negative leaves it as it is.

    Raises:
        ValueError: ``lr_factor`` is negative.
    """
    options: dict[str, Any] = {"weight_decay": weight_decay} if weight_decay >= 0 else {}
    scale_rate(optimizer, policy.parameters(), lr_factor, "SOLVER.GATE_LR_FACTOR", **options)


class GateCollapse(HookBase):
    """Warns, by name, of units that are open for nearly no or nearly every image over many iterations: such a gate has
    stopped to decide. Each unit is named once, and again only after it has recovered.

    Several processes: process 0 speaks of its own images.
    """

    def __init__(self, window: int = 500, low: float = 0.02, high: float = 0.98) -> None:
        """
        Args:
            window: iterations over which rates are averaged.
            low, high: rates that are still no collapse.
        """
        self._window, self._low, self._high = window, low, high
        self._sums: dict[str, float] = defaultdict(float)
        self._count = 0
        self._collapsed: set[str] = set()

    def after_step(self) -> None:
        now = self.trainer.iter
        for name, (value, iteration) in self.trainer.storage.latest().items():
            if iteration == now and name.startswith(RATE):
                self._sums[name.removeprefix(RATE)] += value
        self._count += 1
        if self._count < self._window:
            return
        rates = {name: total / self._count for name, total in self._sums.items()}
        self._sums.clear()
        self._count = 0
        outside = {name for name, rate in rates.items() if not self._low <= rate <= self._high}
        fresh = sorted(outside - self._collapsed)
        if fresh:
            shown = ", ".join(f"{name} {rates[name]:.1%}" for name in fresh)
            logger.warning(
                f"iteration {now}: {len(fresh)} of {len(rates)} gated units have collapsed (execution rate under "
                f"{self._low:.0%} or over {self._high:.0%} over the last {self._window} iterations): {shown}."
            )
        for name in sorted(self._collapsed - outside):
            logger.info(f"iteration {now}: gated unit {name} has recovered, execution rate {rates[name]:.1%}")
        self._collapsed = outside
