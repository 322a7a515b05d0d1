"""A budget: the share of the multiply-adds that a policy is drawn to while it learns (MODEL.POLICY.BUDGET).

Two ways to reach it, for any policy with probabilities. A squared penalty, as in CDB's Eq. 12; or a price of
computation that rises while the share is above the target and falls below it (dual ascent on "minimise the loss, share
<= target"), which needs no weight to be found.
"""

import torch
from torch import Tensor, nn

from dyn_d2.utils.errors import UserError

from detectron2.config import CfgNode

from .cost import executed_by
from .trace import Trace


def differentiable_share(trace: Trace) -> Tensor:
    """Executed multiply-adds as a share of the dense network's, mean over images: a number with gradient.

    A unit whose gate carries a gradient counts as it ran, with the gradient of its gate (straight through); one that
    was sampled counts with its probability, so that value and gradient are those of the expectation.

    Raises:
        UserError: a unit has no probabilities, or its cost is no number of its own (channels).
    """
    dense = trace.dense()
    total = trace.executed().detach().float().mean()
    for step in trace.steps:
        decision = step.decision
        counted = decision.gate if decision.relaxed else decision.prob
        if step.unit_cost is None:
            raise UserError(
                f"MODEL.POLICY.BUDGET.SHARE: what {step.unit.name} costs depends on other units; give a budget to "
                "policies of blocks or groups."
            )
        if counted is None:
            continue  # always open, as blocks that a curriculum has not reached
        ran = decision.open.float().reshape(len(decision.gate), -1)
        difference = counted.float().reshape(ran.shape) - ran
        total = total + executed_by(difference, step.unit_cost).sum() / max(len(ran), 1)
    return total / dense


class Budget(nn.Module):
    """Draws the share of a batch to a target.

    Attributes:
        price: of executing everything, in units of the task's loss; learned where ``by`` is "price".
    """

    price: Tensor

    def __init__(self, target: float, *, by: str = "penalty", weight: float = 10.0, rate: float = 0.05) -> None:
        """
        Args:
            target: share of the dense network's multiply-adds, gates and what always runs included, in (0, 1].
            by: "penalty": weight * (share - target)^2; "price": price * share.
            weight: of the penalty.
            rate: by how much the price changes in a step for each unit of share - target.
        """
        super().__init__()
        self.target, self.by, self.weight, self.rate = target, by, weight, rate
        if by == "price":
            self.register_buffer("price", torch.zeros(()))

    @classmethod
    def of_keys(cls, cfg: CfgNode) -> "Budget | None":
        """With the keys of MODEL.POLICY.BUDGET; None where SHARE is 0."""
        keys = cfg.MODEL.POLICY.BUDGET
        return cls(keys.SHARE, by=keys.BY, weight=keys.WEIGHT, rate=keys.RATE) if keys.SHARE > 0 else None

    def forward(self, trace: Trace) -> Tensor:
        """The loss of one training step; changes the price."""
        share = differentiable_share(trace)
        if not share.requires_grad:  # nothing is decided in this stage
            return torch.zeros_like(share)
        if self.by == "penalty":
            return self.weight * (share - self.target) ** 2
        loss = self.price.clone() * share
        if self.training:
            self.price.add_(self.rate * (share.detach() - self.target)).clamp_(min=0)
        return loss
