"""Which optimizer trains."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from detectron2.config import CfgNode

BY_ADAM = "by_adam"  # of a group of parameters: its steps are Adam's
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


def chosen_optimizer(cfg: CfgNode, sgd: Optimizer) -> Optimizer:
    """``sgd``, or what SOLVER.OPTIMIZER names over the same groups of parameters, rates and decays.

    Raises:
        ValueError: an unknown name, or clipped gradients, which only SGD has here.
    """
    name, policy = cfg.SOLVER.OPTIMIZER, cfg.SOLVER.POLICY_OPTIMIZER
    if name not in ("SGD", "Adam"):
        raise ValueError(f"SOLVER.OPTIMIZER is {name!r}: use SGD or Adam.")
    if name == "SGD" and not policy:
        return sgd
    if cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        key = "SOLVER.OPTIMIZER" if name == "Adam" else "SOLVER.POLICY_OPTIMIZER"
        raise ValueError(f"{key} Adam does not clip gradients: set SOLVER.CLIP_GRADIENTS.ENABLED False.")
    if name == "Adam":
        groups = [{key: group[key] for key in ("params", "lr", "weight_decay")} for group in sgd.param_groups]
        return Adam(groups, lr=cfg.SOLVER.BASE_LR)
    return PartlyAdam(sgd.param_groups, lr=cfg.SOLVER.BASE_LR)


class PartlyAdam(SGD):
    """SGD, but for groups of parameters that ``train_by_adam`` has marked: their steps are Adam's (Kingma and Ba, 2015,
    Algorithm 1, with the decay added to the gradient)."""

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        """
        Args:
            groups: of parameters, with the options of SGD.
            lr: of groups that have none.
        """
        super().__init__([dict(group) for group in groups], lr=lr)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; see torch.optim.Optimizer."""
        every = self.param_groups
        try:
            self.param_groups = [group for group in every if not group.get(BY_ADAM)]
            loss = super().step(closure)
        finally:
            self.param_groups = every
        for group in every:
            if group.get(BY_ADAM):
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._adam(parameter, group["lr"], group["weight_decay"])
        return loss

    def _adam(self, parameter: nn.Parameter, rate: float, decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        gradient = parameter.grad.add(parameter, alpha=decay)  # type: ignore[union-attr]
        state["step"] += 1
        state["mean"].lerp_(gradient, 1 - _BETAS[0])
        state["square"].mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        count = float(state["step"])
        scale = (state["square"] / (1 - _BETAS[1] ** count)).sqrt_().add_(_EPSILON)
        parameter.addcdiv_(state["mean"], scale, value=-rate / (1 - _BETAS[0] ** count))


def train_by_adam(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Mark the groups of a PartlyAdam that hold these parameters, and nothing else.

    Raises:
        ValueError: a group holds others too.
    """
    chosen = {id(parameter) for parameter in parameters}
    for group in optimizer.param_groups:
        inside = [id(parameter) in chosen for parameter in group["params"]]
        if any(inside) and not all(inside):
            raise ValueError("these parameters share a group with others: give them groups of their own first.")
        if any(inside):
            group[BY_ADAM] = True
