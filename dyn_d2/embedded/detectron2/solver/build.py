"""From ``cfg.SOLVER`` to an optimizer and its schedule."""

import logging
from collections.abc import Callable
from typing import Any

from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    StepWithFixedGammaParamScheduler,
)
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import SGD, Optimizer

from detectron2.config import CfgNode

from .lr_scheduler import LRMultiplier, LRScheduler, WarmupParamScheduler

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)


def _with_gradient_clipping(cfg: CfgNode, optimizer: Optimizer) -> Optimizer:
    """Make ``optimizer`` clip the gradients of each parameter (``SOLVER.CLIP_GRADIENTS``) before it steps."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return optimizer
    if clip.CLIP_TYPE not in ("value", "norm"):
        raise ValueError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE {clip.CLIP_TYPE!r} is unknown: use value or norm.")

    def clip_all(opt: Optimizer, args: tuple, kwargs: dict) -> None:
        for group in opt.param_groups:
            for parameter in group["params"]:
                if clip.CLIP_TYPE == "value":
                    nn.utils.clip_grad_value_(parameter, clip.CLIP_VALUE)
                else:
                    nn.utils.clip_grad_norm_(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)

    optimizer.register_step_pre_hook(clip_all)
    return optimizer


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """SGD over all parameters of ``model`` that require a gradient, as ``cfg.SOLVER`` says."""
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    if not groups:
        raise ValueError("The model has no parameter to train: every one is frozen (MODEL.FREEZE, BACKBONE.FREEZE_AT).")
    optimizer = SGD(
        groups,
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        weight_decay=solver.WEIGHT_DECAY,
        foreach=True,
    )
    return _with_gradient_clipping(cfg, optimizer)


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups, as few as possible, of the trainable parameters of ``model``.

    Args:
        base_lr, weight_decay: for every group; None leaves the optimizer's own value.
        weight_decay_norm: weight decay of normalisation layers.
        bias_lr_factor, weight_decay_bias: for parameters whose name is "bias".
        lr_factor_func: full parameter name -> factor on ``base_lr``.
        overrides: last part of a parameter's name -> options that replace all of the above.

    Raises:
        ValueError: a factor on the learning rate without ``base_lr``; two rules for "bias".
    """
    if base_lr is None and (lr_factor_func is not None or bias_lr_factor not in (None, 1.0)):
        raise ValueError("lr_factor_func and bias_lr_factor multiply base_lr: give base_lr as well.")
    rules = dict(overrides or {})
    bias: dict[str, float] = {}
    if bias_lr_factor not in (None, 1.0):
        bias["lr"] = base_lr * bias_lr_factor
    if weight_decay_bias is not None:
        bias["weight_decay"] = weight_decay_bias
    if bias and "bias" in rules:
        raise ValueError("overrides['bias'] conflicts with bias_lr_factor or weight_decay_bias.")
    if bias:
        rules["bias"] = bias

    groups: dict[tuple, list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            options = {"lr": base_lr, "weight_decay": weight_decay}
            if weight_decay_norm is not None and isinstance(module, _NORMS):
                options["weight_decay"] = weight_decay_norm
            if lr_factor_func is not None:
                options["lr"] *= lr_factor_func(f"{prefix}.{name}")
            options.update(rules.get(name, {}))
            key = tuple((k, v) for k, v in options.items() if v is not None)
            groups.setdefault(key, []).append(parameter)
    return [{**dict(key), "params": parameters} for key, parameters in groups.items()]


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    """The schedule that ``SOLVER.LR_SCHEDULER_NAME`` names.

    Raises:
        ValueError: unknown name, or decay steps that do not increase.
    """
    solver = cfg.SOLVER
    name, length = solver.LR_SCHEDULER_NAME, solver.MAX_ITER
    if name == "WarmupMultiStepLR":
        steps = [step for step in solver.STEPS if step < length]
        if len(steps) < len(solver.STEPS):
            logging.getLogger(__name__).warning(
                "SOLVER.STEPS %s: those not before SOLVER.MAX_ITER %d never happen.", tuple(solver.STEPS), length
            )
        if any(later <= earlier for earlier, later in zip(steps, steps[1:], strict=False)):
            raise ValueError(f"SOLVER.STEPS has to increase, but is {tuple(solver.STEPS)}.")
        values = [solver.GAMMA**k for k in range(len(steps) + 1)]
        schedule = MultiStepParamScheduler(values=values, milestones=steps, num_updates=length)
    elif name == "WarmupCosineLR":
        end = solver.BASE_LR_END / solver.BASE_LR
        if not 0.0 <= end <= 1.0:
            raise ValueError(f"SOLVER.BASE_LR_END {solver.BASE_LR_END} has to lie in [0, {solver.BASE_LR}] (BASE_LR).")
        schedule = CosineParamScheduler(1, end)
    elif name == "WarmupStepWithFixedGammaLR":
        schedule = StepWithFixedGammaParamScheduler(
            base_value=1.0, gamma=solver.GAMMA, num_decays=solver.NUM_DECAYS, num_updates=length
        )
    else:
        known = "WarmupMultiStepLR, WarmupCosineLR, WarmupStepWithFixedGammaLR"
        raise ValueError(f"SOLVER.LR_SCHEDULER_NAME {name!r} is unknown: use one of {known}.")
    schedule = WarmupParamScheduler(
        schedule,
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / length, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=length)
