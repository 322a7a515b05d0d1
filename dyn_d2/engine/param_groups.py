"""Groups of parameters with a rate or a decay of their own."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer


def scale_rate(
    optimizer: Optimizer,
    parameters: Iterable[nn.Parameter],
    lr_factor: float,
    key: str,
    *,
    excluding: Iterable[nn.Parameter] = (),
    **options: Any,
) -> None:
    """Multiply the learning rate of parameters, in groups of their own.

    Args:
        optimizer: changed in place, before its first step.
        parameters: those that it does not train are passed over.
        lr_factor: multiplies their rate.
        key: that gave ``lr_factor``, for the message.
        excluding: which of ``parameters`` stay as they are.
        options: further values of the groups, e.g. ``weight_decay``.

    Raises:
        ValueError: ``lr_factor`` is negative.
    """
    if lr_factor < 0:
        raise ValueError(f"{key} is {lr_factor}: use 0 or more.")
    chosen = {id(parameter) for parameter in parameters} - {id(parameter) for parameter in excluding}
    for group in list(optimizer.param_groups):
        own = [parameter for parameter in group["params"] if id(parameter) in chosen]
        others = [parameter for parameter in group["params"] if id(parameter) not in chosen]
        if not own:
            continue
        changed = {"lr": group["lr"] * lr_factor, **options}
        if others:
            group["params"] = others
            optimizer.add_param_group({**group, **changed, "params": own})
        else:
            group.update(changed)


def scale_backbone_rate(optimizer: Optimizer, backbone: nn.Module, lr_factor: float) -> None:
    """Multiply the learning rate of a backbone, but for modules in it that say ``own_rate``: theirs is another matter.

    Raises:
        ValueError: ``lr_factor`` is negative.
    """
    apart = (module for module in backbone.modules() if getattr(module, "own_rate", False))
    excluding = [parameter for module in apart for parameter in module.parameters()]
    scale_rate(optimizer, backbone.parameters(), lr_factor, "SOLVER.BACKBONE_LR_FACTOR", excluding=excluding)
