"""Keys of the config that a trainer or loader has to apply.

Detectron2 builds a model from the config, but parts of it are up to whoever trains: what is frozen, the optimizer, the
masks that are left out. DynTrainer applies all of them; a plain DefaultTrainer knows none, and would train something
else without a word. So the models and heads of dyn_d2 look, in the first step of a training, whether the keys that are
set were applied to them, and refuse to go on otherwise. Whoever applies one of them says so here.
"""

import json
from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

import yaml
from torch import nn
from torch.optim import Optimizer

from dyn_d2.utils.errors import UserError

from detectron2.config import CfgNode
from detectron2.utils.events import has_event_storage

# Key -> its value where nothing has to be done. Methods add theirs.
OPTIMIZER_KEYS: dict[str, Any] = {"SOLVER.OPTIMIZER": "SGD", "SOLVER.BACKBONE_LR_FACTOR": 1.0}
LOADER_KEYS: dict[str, Any] = {"INPUT.RANDOM_SCALE": [], "DATALOADER.ONE_DATASET_PER_BATCH": False}
PARTIAL_MASKS = "INPUT.PARTIAL_MASKS"

_REMEDIES = {
    "MODEL.FREEZE": "give the model to dyn_d2.modeling.freeze.freeze(model, cfg.MODEL.FREEZE) in build_model",
    "optimizer": "return DynTrainer.build_optimizer(cfg, model) from build_optimizer",
    "loader": "return DynTrainer.build_train_loader(cfg) from build_train_loader",
    PARTIAL_MASKS: (
        "return DynTrainer.build_train_loader(cfg) from build_train_loader, or give the records to "
        "dyn_d2.data.partial_masks.apply_partial_masks and map them with PartialMaskMapper"
    ),
}

_frozen: WeakSet[nn.Module] = WeakSet()
_optimizers: WeakSet[Optimizer] = WeakSet()
_data: set[str] = set()  # values of keys of the loader that were applied in this process


class KeyNotApplied(UserError):
    """A key is set, and nobody has applied it; the message names it and how to."""


def note_frozen(model: nn.Module) -> None:
    """``freeze`` was given this model."""
    _frozen.add(model)


def note_optimizer(optimizer: Optimizer) -> None:
    """This optimizer follows all keys that concern it."""
    _optimizers.add(optimizer)


def note_loader(cfg: CfgNode, keys: Iterable[str]) -> None:
    """A loader follows these keys, with the values that they have in ``cfg``."""
    _data.update(_value(cfg, key) for key in keys)


class NoticesKeys:
    """Goes before the class of Detectron2 in the bases of a model or head that is made from a config.

    Raises:
        KeyNotApplied: in the first forward pass of a training, if a key that is set was not applied.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> "NoticesKeys":
        self = super().__new__(cls)
        cfg = next((value for value in (*args, *kwargs.values()) if isinstance(value, CfgNode)), None)
        if cfg is not None:
            self.__dict__["_keys_to_apply"] = _KeysToApply(cfg)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        keys = self.__dict__.get("_keys_to_apply")
        if keys is not None:
            keys.check(self)
        return super().__call__(*args, **kwargs)  # type: ignore[misc]  # nn.Module's


class _KeysToApply:
    """Those of a config that are set, and that a trainer or loader has to apply."""

    def __init__(self, cfg: CfgNode) -> None:
        self._freeze = bool(cfg.MODEL.get("FREEZE", ()))
        self._optimizer = [key for key, default in OPTIMIZER_KEYS.items() if _get(cfg, key, default) != default]
        self._data = {
            key: _value(cfg, key) for key, default in LOADER_KEYS.items() if _get(cfg, key, default) != default
        }
        masks = cfg.INPUT.get("PARTIAL_MASKS", None)
        if cfg.MODEL.MASK_ON and masks is not None and (masks.CLASSES or masks.FRACTION != 1 or masks.PSEUDO != "none"):
            self._data[PARTIAL_MASKS] = _value(cfg, PARTIAL_MASKS)
        self._done = not (self._freeze or self._optimizer or self._data)

    def check(self, module: Any) -> None:
        """Look once, in a training; a model that is called outside of a trainer's loop trains nothing.

        Raises:
            KeyNotApplied: lists the keys.
        """
        if self._done or not module.training or not has_event_storage():
            return
        self._done = True
        problems = []
        if self._freeze and not any(_holds(model, module) for model in _frozen):
            problems.append(("MODEL.FREEZE", _REMEDIES["MODEL.FREEZE"]))
        own = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
        if own and not any(own & _parameters(optimizer) for optimizer in _optimizers):
            problems += [(key, _REMEDIES["optimizer"]) for key in self._optimizer]
        for key, value in self._data.items():
            if value not in _data:
                problems.append((key, _REMEDIES.get(key, _REMEDIES["loader"])))
        if problems:
            listed = "".join(f"\n  {key}: {remedy}" for key, remedy in problems)
            raise KeyNotApplied(
                f"{len(problems)} keys of the config are set, but this trainer has not applied them:{listed}\n"
                "DynTrainer applies all of them; docs/your_own_trainer.md shows both ways."
            )


def _holds(model: nn.Module, module: nn.Module) -> bool:
    return any(part is module for part in model.modules())


def _parameters(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _get(cfg: CfgNode, key: str, default: Any = None) -> Any:
    node: Any = cfg
    for part in key.split("."):
        if part not in node:
            return default
        node = node[part]
    return node


def _value(cfg: CfgNode, key: str) -> str:
    """Key and value as a text."""
    value = _get(cfg, key)
    if isinstance(value, CfgNode):
        value = {name: part for name, part in yaml.safe_load(value.dump()).items() if name != "CACHE"}
    return json.dumps([key, value], sort_keys=True, default=list)
