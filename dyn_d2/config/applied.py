"""Keys of the config that a trainer or loader has to apply.

Detectron2 builds a model from the config, but parts of it are up to whoever trains: what is frozen, the optimizer, the
masks that are left out. DynTrainer applies all of them; a plain DefaultTrainer knows none, and would train something
else without a word. So the models and heads of dyn_d2 look, in the first step of a training, whether the keys that are
set were applied to them, and refuse to go on otherwise. Whoever applies one of them says so here.
"""

import json
from collections.abc import Callable
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import yaml
from torch import nn
from torch.optim import Optimizer

from dyn_d2.utils.errors import UserError

from detectron2.config import CfgNode
from detectron2.utils.events import has_event_storage

# Key -> its value where nothing has to be done. Methods add theirs.
OPTIMIZER_KEYS: dict[str, Any] = {
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.POLICY_OPTIMIZER": "",
    "SOLVER.BACKBONE_LR_FACTOR": 1.0,
}
LOADER_KEYS: dict[str, Any] = {"INPUT.RANDOM_SCALE": [], "DATALOADER.ONE_DATASET_PER_BATCH": False}
PARTIAL_MASKS = "INPUT.PARTIAL_MASKS"
_CLASSIFIER = "MODEL.ROI_BOX_HEAD.CLASSIFIER"

_REMEDIES = {
    "MODEL.FREEZE": "give the model to dyn_d2.modeling.freeze.freeze(model, cfg.MODEL.FREEZE) in build_model",
    "optimizer": "return DynTrainer.build_optimizer(cfg, model) from build_optimizer",
    "loader": "return DynTrainer.build_train_loader(cfg) from build_train_loader",
    _CLASSIFIER: "set MODEL.ROI_HEADS.NAME to DynROIHeads or DynRes5ROIHeads, which read it",
    PARTIAL_MASKS: (
        "return DynTrainer.build_train_loader(cfg) from build_train_loader, or give the records to "
        "dyn_d2.data.partial_masks.apply_partial_masks and map them with PartialMaskMapper"
    ),
}

_frozen: WeakSet[nn.Module] = WeakSet()
_optimizers: WeakSet[Optimizer] = WeakSet()
_loaders: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()  # loader -> keys and values that it follows
_masks: set[str] = set()  # values of INPUT.PARTIAL_MASKS that were applied to records by hand


class KeyNotApplied(UserError):
    """A key is set, and nobody has applied it; the message names it and how to."""


def note_frozen(model: nn.Module) -> None:
    """``freeze`` was given this model."""
    _frozen.add(model)


def note_optimizer(optimizer: Optimizer) -> None:
    """This optimizer follows all keys that concern it."""
    _optimizers.add(optimizer)


def note_loader(loader: Any, cfg: CfgNode) -> None:
    """As long as it is there, this loader follows all keys of loaders, with the values that they have in ``cfg``."""
    _loaders[loader] = {_value(cfg, key) for key in (*LOADER_KEYS, PARTIAL_MASKS)}


def note_partial_masks(cfg: CfgNode) -> None:
    """INPUT.PARTIAL_MASKS was applied to records, for a loader that is not known here."""
    _masks.add(_value(cfg, PARTIAL_MASKS))


class NoticesKeys:
    """Goes before the class of Detectron2 in the bases of a model or head that is made from a config.

    Raises:
        KeyNotApplied: in the first forward pass of a training, if a key that is set was not applied.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> "NoticesKeys":
        self = super().__new__(cls)
        cfg = next((value for value in (*args, *kwargs.values()) if isinstance(value, CfgNode)), None)
        if cfg is not None:
            self.__dict__["_keys_to_apply"] = KeysToApply(cfg)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        keys = self.__dict__.get("_keys_to_apply")
        if keys is not None:
            keys.check(self)
        return super().__call__(*args, **kwargs)  # type: ignore[misc]  # nn.Module's


def notices_keys(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The same for a function that makes a part of a model, such as a backbone, from a config."""

    @wraps(build)
    def built(cfg: CfgNode, *args: Any, **kwargs: Any) -> nn.Module:
        module = build(cfg, *args, **kwargs)
        module.register_forward_pre_hook(KeysToApply(cfg))
        return module

    return built


class KeysToApply:
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
        self._classifier = cfg.MODEL.ROI_BOX_HEAD.get("CLASSIFIER", "linear") != "linear"
        self._done = not (self._freeze or self._optimizer or self._data or self._classifier)

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        """``check`` as a hook before the forward pass of a module."""
        self.check(module)

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
            if value not in _masks and not any(value in followed for followed in _loaders.values()):
                problems.append((key, _REMEDIES.get(key, _REMEDIES["loader"])))
        heads = getattr(module, "roi_heads", None)
        if self._classifier and heads is not None and not getattr(heads, "classifier_by_name", False):
            problems.append((_CLASSIFIER, _REMEDIES[_CLASSIFIER]))
        if problems:
            listed = "".join(f"\n  {key}: {remedy}" for key, remedy in problems)
            raise KeyNotApplied(
                f"Keys of the config are set, but not applied by this trainer:{listed}\n"
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
