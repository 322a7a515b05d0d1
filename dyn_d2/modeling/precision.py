"""Convolutions that bfloat16 makes slower."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode


def keep_precise(cfg: CfgNode, model: nn.Module) -> int:
    """Depthwise convolutions of training on a CPU in bfloat16 (SOLVER.AMP.ENABLED) compute in float32 but for those of
    3 x 3 and stride 1: the gradients of the others have no kernel in oneDNN and take 4 to 14 times as long as in
    float32. Their outputs are bfloat16 as before.

    Returns:
        How many there are; 0 elsewhere.
    """
    if not cfg.SOLVER.AMP.ENABLED or cfg.MODEL.DEVICE != "cpu":
        return 0
    slow = [module for module in model.modules() if isinstance(module, nn.Conv2d) and _is_slow(module)]
    for module in slow:
        # Bound to the module itself: a copy of the model, or a pickled one, has its own.
        module.forward = partial(_in_float32, module)  # type: ignore[method-assign]
    return len(slow)


def _is_slow(layer: nn.Conv2d) -> bool:
    depthwise = layer.groups == layer.in_channels > 1
    return depthwise and (tuple(layer.kernel_size) != (3, 3) or tuple(layer.stride) != (1, 1))


def _in_float32(module: Any, x: Tensor) -> Tensor:
    plain = type(module).forward
    if x.device.type != "cpu" or not (torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()):
        return plain(module, x)
    with torch.autocast("cpu", enabled=False):
        return plain(module, x.float()).to(torch.get_autocast_dtype("cpu"))
