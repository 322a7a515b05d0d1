"""Which optimizer trains."""

import ast
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from detectron2.config import CfgNode

_UNFIT = ("Optimizer", "LBFGS", "SparseAdam")  # a base class; asks for the loss again; of sparse gradients
BY_ADAM = "by_adam"  # of a group of parameters: its steps are Adam's


def optimizer_names() -> list[str]:
    """Names of the optimizers of torch.optim that train here."""
    found = {name: value for name, value in vars(torch.optim).items() if isinstance(value, type)}
    return sorted(name for name, value in found.items() if issubclass(value, Optimizer) and name not in _UNFIT)


def options_of(texts: list[str]) -> dict[str, Any]:
    """What SOLVER.OPTIMIZER_OPTIONS says, such as ["betas=(0.9, 0.95)"].

    Raises:
        ValueError: one is no NAME=VALUE.
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            found[name.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            equals = ""
        if not equals or not name.strip().isidentifier():
            raise ValueError(f"SOLVER.OPTIMIZER_OPTIONS has {text!r}: use NAME=VALUE, such as betas=(0.9, 0.95).")
    return found


def chosen_optimizer(cfg: CfgNode, sgd: Optimizer) -> Optimizer:
    """``sgd``, or what SOLVER.OPTIMIZER names in torch.optim, over the same groups of parameters, rates and decays.

    Raises:
        ValueError: an unknown name, options that this optimizer does not take, or a policy's optimizer beside it.
    """
    name, options = cfg.SOLVER.OPTIMIZER, options_of(list(cfg.SOLVER.OPTIMIZER_OPTIONS))
    if cfg.SOLVER.POLICY_OPTIMIZER not in ("", name) and name != "SGD":
        raise ValueError(
            f"SOLVER.POLICY_OPTIMIZER {cfg.SOLVER.POLICY_OPTIMIZER} beside SOLVER.OPTIMIZER {name}: the network's has "
            "to be SGD, or the same."
        )
    if name == "SGD":
        if options:
            raise ValueError("SOLVER.OPTIMIZER_OPTIONS are for the others: SGD has SOLVER.MOMENTUM and NESTEROV.")
        return PartlyAdam(sgd.param_groups, cfg) if cfg.SOLVER.POLICY_OPTIMIZER else sgd
    if name not in optimizer_names():
        raise ValueError(f"SOLVER.OPTIMIZER is {name!r}: use one of {', '.join(optimizer_names())}.")
    kind: Any = getattr(torch.optim, name)
    taken = inspect.signature(kind).parameters
    unknown = [option for option in options if option not in taken or option in ("params", "lr", "weight_decay")]
    if unknown:
        known = ", ".join(p for p in taken if p not in ("params", "lr", "weight_decay"))
        raise ValueError(
            f"SOLVER.OPTIMIZER_OPTIONS: {name} takes no {', '.join(unknown)} there, but {known}; its rate and decay "
            "are SOLVER.BASE_LR and WEIGHT_DECAY."
        )
    kept = [key for key in ("params", "lr", "weight_decay") if key == "params" or key in taken]
    groups = [{key: group[key] for key in kept} for group in sgd.param_groups]
    try:
        optimizer = kind(groups, lr=cfg.SOLVER.BASE_LR, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"SOLVER.OPTIMIZER {name} cannot train this model: {error}") from error
    _clip_before_steps(optimizer, cfg)
    return optimizer


def _clip_before_steps(optimizer: Optimizer, cfg: CfgNode) -> None:
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED:
        optimizer.register_step_pre_hook(lambda opt, args, kwargs: _clip(opt, clip))


def _clip(optimizer: Optimizer, clip: CfgNode) -> None:
    """SOLVER.CLIP_GRADIENTS, of each parameter by itself."""
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        if clip.CLIP_TYPE == "value":
            nn.utils.clip_grad_value_(parameter, clip.CLIP_VALUE)
        else:
            nn.utils.clip_grad_norm_(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)


class PartlyAdam(SGD):
    """SGD, but for groups of parameters that ``train_by_adam`` has marked: theirs are the steps of Adam."""

    def __init__(self, groups: list[dict[str, Any]], cfg: CfgNode) -> None:
        """
        Args:
            groups: of parameters, with the options of SGD.
            cfg: has the rate of groups that have none, and SOLVER.CLIP_GRADIENTS.
        """
        super().__init__([dict(group) for group in groups], lr=cfg.SOLVER.BASE_LR)
        self._adam = Adam([parameter for group in self.param_groups for parameter in group["params"]])
        _clip_before_steps(self, cfg)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; see torch.optim.Optimizer."""
        every = self.param_groups
        of_adam = [group for group in every if group.get(BY_ADAM)]
        try:
            self.param_groups = [group for group in every if not group.get(BY_ADAM)]
            loss = super().step(closure)
        finally:
            self.param_groups = every
        for group in of_adam:
            for option, value in self._adam.defaults.items():
                group.setdefault(option, value)
        # Here is what schedules change and checkpoints hold.
        self._adam.param_groups, self._adam.state = of_adam, self.state
        self._adam.step()
        return loss


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
