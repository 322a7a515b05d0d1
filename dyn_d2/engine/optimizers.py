"""Which optimizer trains."""

import ast
import inspect
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from detectron2.config import CfgNode

_UNFIT = ("Optimizer", "LBFGS", "SparseAdam")  # a base class; asks for the loss again; of sparse gradients


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
        ValueError: an unknown name, or options that this optimizer does not take.
    """
    name, options = cfg.SOLVER.OPTIMIZER, options_of(list(cfg.SOLVER.OPTIMIZER_OPTIONS))
    if name == "SGD":
        if options:
            raise ValueError("SOLVER.OPTIMIZER_OPTIONS are for the others: SGD has SOLVER.MOMENTUM and NESTEROV.")
        return sgd
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
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED:
        optimizer.register_step_pre_hook(lambda opt, args, kwargs: _clip(opt, clip))
    return optimizer


def _clip(optimizer: Optimizer, clip: CfgNode) -> None:
    """SOLVER.CLIP_GRADIENTS, of each parameter by itself."""
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        if clip.CLIP_TYPE == "value":
            nn.utils.clip_grad_value_(parameter, clip.CLIP_VALUE)
        else:
            nn.utils.clip_grad_norm_(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)
