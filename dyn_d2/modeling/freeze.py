"""Frozen means frozen: parts of a model whose parameters and buffers do not change in training."""

import hashlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from dyn_d2.config.applied import note_frozen

from detectron2.engine import HookBase
from detectron2.layers import FrozenBatchNorm2d

_MARK = "dyn_d2_frozen"  # attribute of the modules that were frozen


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    """Takes the place of ``train`` on a frozen layer: ``model.train()`` reaches it and changes nothing."""
    return nn.Module.train(module, False)


def _keep_in_eval(module: nn.Module) -> None:
    module.train = MethodType(_stay_in_eval, module)  # type: ignore[method-assign]
    module.eval()


def _fix(part: nn.Module) -> None:
    setattr(part, _MARK, True)
    part.requires_grad_(False)


def freeze_whole(part: nn.Module) -> None:
    """Freeze a part that shall also behave as in evaluation, not only its leaf layers."""
    _fix(part)
    _keep_in_eval(part)


def has_frozen_parts(model: nn.Module) -> bool:
    """Whether ``freeze`` or ``freeze_whole`` was given anything in ``model``."""
    return any(getattr(module, _MARK, False) for module in model.modules())


def what_moves(model: nn.Module, parts: Sequence[str], before: str) -> str:
    """Why these parts of ``model`` do not make the same of an input at each step of training; "" where they do.

    Args:
        before: what comes after them, for the message.
    """
    named = {where: model.get_submodule(where) for where in parts}
    learning = [
        f"{where}.{name}" for where, part in named.items() for name, p in part.named_parameters() if p.requires_grad
    ]
    if learning:
        return f"{len(learning)} parameters before {before} learn, such as {learning[0]}"
    for layer in (module for part in named.values() for module in part.modules()):
        if not layer.training or isinstance(layer, FrozenBatchNorm2d) or next(layer.children(), None) is not None:
            continue
        if isinstance(layer, _DropoutNd) or any(True for _ in layer.buffers()):
            return f"{type(layer).__name__} is not frozen by MODEL.FREEZE"
    return ""


def _matched_modules(model: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    named = {name: module for name, module in model.named_modules() if name}
    found = []
    for pattern in patterns:
        hits = [module for name, module in named.items() if fnmatchcase(name, pattern)]
        if not hits:
            shown = [name for name in named if name.count(".") <= 2]
            raise ValueError(
                f"MODEL.FREEZE names {pattern!r}, which no module matches. The modules are: {', '.join(shown)}."
            )
        found += hits
    return found


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Freeze the parts of ``model`` that ``patterns`` name, with all that lies under them.

    Their parameters get no gradient. Their leaf layers (batch norm, dropout) stay in evaluation mode also after
    ``model.train()``, so that running statistics do not move; composite modules keep their mode, because a frozen
    RPN still has to make training proposals and losses.

    Args:
        patterns: module paths such as "backbone" or "roi_heads.box_head"; "*" matches any characters.

    Returns:
        The names of the parameters that were frozen.

    Raises:
        ValueError: a pattern matches no module, or nothing is left to train.
    """
    note_frozen(model)
    frozen: set[int] = set()
    for part in _matched_modules(model, patterns):
        frozen.update(map(id, part.parameters()))
        _fix(part)
        for layer in part.modules():
            if isinstance(layer, _NormBase) or next(layer.children(), None) is None:
                _keep_in_eval(layer)
    if patterns and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"MODEL.FREEZE {list(patterns)} leaves nothing to train.")
    return [name for name, parameter in model.named_parameters() if id(parameter) in frozen]


def frozen_fingerprint(model: nn.Module) -> dict[str, str]:
    """A hash, by name, of all that training must not change: every parameter without gradient, and every buffer of the
    frozen parts."""
    tensors = {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for prefix, module in model.named_modules():
        if getattr(module, _MARK, False):
            tensors.update(module.named_buffers(prefix=prefix))
    return {name: tensor_hash(tensor) for name, tensor in sorted(tensors.items())}


def tensor_hash(tensor: Tensor) -> str:
    """A hash of type, shape and values."""
    values = tensor.detach().cpu().contiguous()
    described = f"{values.dtype}{tuple(values.shape)}".encode()
    return hashlib.sha256(described + values.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


class VerifyFrozen(HookBase):
    """Compares the fingerprint of the frozen parts before and after training.

    Raises:
        RuntimeError: in ``after_train`` of a run that reached its end, naming what changed.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def before_train(self) -> None:
        self._before = frozen_fingerprint(self._model)

    def after_train(self) -> None:
        if self.trainer.iter < self.trainer.max_iter:  # the run failed: its own error is the one to show
            return
        after = frozen_fingerprint(self._model)
        names = self._before.keys() | after.keys()
        changed = sorted(name for name in names if self._before.get(name) != after.get(name))
        if changed:
            shown = ", ".join(changed[:20])
            raise RuntimeError(f"training changed {len(changed)} frozen parameters or buffers: {shown}.")
