"""FEW_SHOT.CACHE: fine-tuning and evaluation from features that are computed once for a base model, image and view.

What keeps them (:class:`FeatureCache`) serves frozen_maps.py too.
"""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

from torch import nn

from dyn_d2 import __version__ as version
from dyn_d2.config.output_dir import defaults, is_below
from dyn_d2.config.read import as_yaml, flatten
from dyn_d2.data.few_shot.stages import BASE, is_fine_tuning
from dyn_d2.data.fingerprint import file_hash
from dyn_d2.data.resumable import MappedByPosition, ResumableLoader
from dyn_d2.data.views import View, ViewMapper, count_views, known_in_evaluation, views_problem
from dyn_d2.modeling.freeze import tensor_hash
from dyn_d2.modeling.predictor_alone import BEFORE_PREDICTOR, PredictorAlone, not_predictor_alone, other_form
from dyn_d2.utils.errors import UserError
from dyn_d2.utils.tensor_store import Tensors, TensorStore

from detectron2 import __version__ as detectron2_version
from detectron2.config import CfgNode
from detectron2.engine import HookBase

logger = logging.getLogger(__name__)

ALONE = "dyn_d2_rest_alone"  # attribute of a model: what takes the place of (a part of) its forward pass, an Alone
ViewsProblem = Callable[[Any, Sequence[dict[str, Any]]], str]
_FORMAT = 1  # of what is kept; another one is another cache
# Keys, or nodes of keys, of MODEL that proposals and box features do not depend on, and others that they depend on.
_APART = tuple(
    f"MODEL.{name}"
    for name in (
        "WEIGHTS",
        "DEVICE",
        "FREEZE",
        "MASK_ON",
        "ROI_HEADS",
        "ROI_BOX_HEAD",
        "ROI_MASK_HEAD",
        "RETINANET",
        "SEM_SEG_HEAD",
        "TIMM.WEIGHTS",
    )
)
_MAKES_FEATURES = (
    "INPUT.FORMAT",
    "MODEL.ROI_HEADS.IN_FEATURES",
    *(f"MODEL.ROI_BOX_HEAD.{name}" for name in ("NAME", "NORM", "NUM_CONV", "CONV_DIM", "NUM_FC", "FC_DIM")),
    *(f"MODEL.ROI_BOX_HEAD.POOLER_{name}" for name in ("TYPE", "RESOLUTION", "SAMPLING_RATIO")),
)


class CacheError(UserError):
    """FEW_SHOT.CACHE is on where features change."""


def cache_folder(cfg: CfgNode) -> str:
    """FEW_SHOT.CACHE_DIR, or its place below OUTPUT_DIR."""
    return cfg.FEW_SHOT.CACHE_DIR or os.path.join(os.path.abspath(cfg.OUTPUT_DIR), "feature_cache")


class Alone(Protocol):
    """Takes the place of a model's forward pass, and computes no more than what learns."""

    @property
    def cache(self) -> Any:
        """Where features are kept; None where they are computed at each step."""
        ...

    def __call__(self, inputs: list[dict[str, Any]]) -> Any: ...

    def refresh(self) -> None:
        """The weights may be others now."""
        ...


class FeatureCache:
    """The kept features of one frozen detector."""

    def __init__(
        self,
        model: nn.Module,
        store: TensorStore,
        fingerprint: Callable[[nn.Module], str],
        parts: Sequence[str],
        view_bytes: Callable[[bool], int],
        training_kind: str = "train",
    ) -> None:
        """
        Args:
            model: the detector.
            store: where they lie.
            fingerprint: hash of all that the features of an image depend on beside the image.
            parts: modules of the model that make them.
            view_bytes: what those of a view take at most; True for training.
            training_kind: tells training features that were computed in another way.
        """
        self._model, self._store, self._fingerprint, self._parts = model, store, fingerprint, tuple(parts)
        self._view_bytes, self._training_kind = view_bytes, training_kind
        self._keys: dict[tuple, str] = {}
        self._place = ""
        self._weights: list[tuple[int, int]] = []
        self._counts: Counter[str] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        """Workers of a loader ask what is there; they need no model."""
        return {**vars(self), "_model": None, "_fingerprint": None, "_view_bytes": None}

    def refresh(self) -> None:
        """See whose features these are; to be called before a training or an evaluation, as weights may be others."""
        tensors = [t for part in self._parts for t in self._model.get_submodule(part).state_dict().values()]
        now = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        if self._place and now == self._weights:
            return
        self._weights, self._place = now, self._fingerprint(self._model)
        self._keys.clear()
        logger.info(f"features of frozen parts: {self._store.folder / self._place}")

    @property
    def usable(self) -> bool:
        """Whether more can be kept."""
        return self._store.usable

    def needs(self, views: int, training: bool) -> float:
        """What the features of so many views take at most, in 10^9 bytes."""
        return views * self._view_bytes(training) / 1e9

    def fits(self, images: int) -> bool:
        """Whether test sets of so many images can be kept."""
        return self.needs(images, training=False) <= self._store.limit_gb

    def has(self, view: View, training: bool) -> bool:
        """Whether features of the view are kept."""
        return self._store.has(self._key(view, training))

    def read(self, view: View, training: bool) -> Tensors | None:
        """What is kept of the view, None for nothing."""
        found = self._store.read(self._key(view, training))
        self._counts["computed" if found is None else "read"] += 1
        return found

    def write(self, view: View, training: bool, tensors: Tensors) -> bool:
        """Keep it; False where that is not possible."""
        return self._store.write(self._key(view, training), tensors)

    def say(self) -> None:
        """What was done since the last call, in the log."""
        computed, read = self._counts["computed"], self._counts["read"]
        if computed or read:
            logger.info(f"features of views: {computed} computed, {read} read from the cache")
        self._counts.clear()

    def _key(self, view: View, training: bool) -> str:
        if not self._place:
            self.refresh()
        known = view.file_name, view.name, training
        if known not in self._keys:
            kind = self._training_kind if training else "test"
            text = f"{file_hash(view.file_name)} {view.name} {kind}"
            name = hashlib.sha256(text.encode()).hexdigest()[:24]
            self._keys[known] = f"{self._place}/{name[:2]}/{name}"
        return self._keys[known]


def features_fingerprint(cfg: CfgNode, model: nn.Module) -> str:
    """Hash of all that the proposals and box features of an image depend on beside the image."""
    return frozen_fingerprint(cfg, model, BEFORE_PREDICTOR, _APART, _MAKES_FEATURES)


def frozen_fingerprint(
    cfg: CfgNode, model: Any, parts: Sequence[str], apart: Sequence[str], counted: Sequence[str]
) -> str:
    """Hash of all that what some parts of a model make of an image depends on beside the image.

    Args:
        parts: modules of ``model``.
        apart: keys, or nodes of keys, of MODEL that do not matter.
        counted: keys that do, although they are not of MODEL or below ``apart``.
    """
    usual = defaults()  # only what differs from it counts, so that a key of a later version changes nothing
    kept = {
        key: value
        for key, value in flatten(as_yaml(cfg)).items()
        if (is_below(key, ("MODEL",)) and not is_below(key, apart) or is_below(key, counted))
        and usual.get(key) != value
    }
    weights = {
        f"{part}.{name}": tensor_hash(tensor)
        for part in parts
        for name, tensor in model.get_submodule(part).state_dict().items()
    }
    described = [_FORMAT, version, detectron2_version, model.device.type, kept, weights]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:20]


def predictor_alone(cfg: CfgNode, model: nn.Module, loader: Any) -> None:
    """Have ``model`` compute no more than its predictor in training, where nothing else learns, and ``loader`` leave
    out images whose features are kept. Elsewhere nothing changes; the log says which.

    Raises:
        CacheError: FEW_SHOT.CACHE is on, and the features change.
    """
    if not is_fine_tuning(cfg):
        return
    how = cfg.FEW_SHOT.CACHE
    problem = _problem(cfg, model) or loader_problem(loader)
    if problem:
        if how == "on":
            raise CacheError(f"FEW_SHOT.CACHE is on, but features cannot be kept: {problem}. Use auto.")
        logger.info(f"FEW_SHOT.CACHE {how}: features are computed at each step, as {problem}")
        return
    views = count_all_views(loader)
    needed = views * _view_bytes(model, training=True) / 1e9
    kept = how == "on" or how == "auto" and needed <= cfg.FEW_SHOT.CACHE_GB
    where = f"kept in {cache_folder(cfg)}" if kept else "computed at each step"
    logger.info(f"FEW_SHOT.CACHE {how}: only the box predictor learns; the features before it are {where}")
    if how != "off" and needed > cfg.FEW_SHOT.CACHE_GB:
        logger.warning(f"FEW_SHOT.CACHE_GB is {cfg.FEW_SHOT.CACHE_GB:g}, all features may take {needed:.2g} GB")
    cache = _attach_predictor(cfg, model, kept)
    loader.dataset.mapper = ViewMapper(loader.dataset.mapper, partial(_has, cache if kept else None))


def count_all_views(loader: Any) -> int:
    """How many views of its images a loader without ``loader_problem`` may give."""
    images = len({record["file_name"] for record in loader.dataset.records})
    return images * count_views(loader.dataset.mapper)


def _view_bytes(model: Any, training: bool) -> int:
    width = model.roi_heads.box_predictor.bbox_pred.in_features
    return model.proposal_generator.post_nms_topk[training] * (2 * width + 4 * 5)  # features in 16 bits, box, score


def _problem(cfg: CfgNode, model: nn.Module) -> str:
    return "VIS_PERIOD draws the images" if cfg.VIS_PERIOD else not_predictor_alone(model)


def loader_problem(loader: Any, views_problem: ViewsProblem = views_problem) -> str:
    """Why the images of a loader cannot be left out; "" where they can.

    Args:
        views_problem: (mapper, records) -> why their views are not known beforehand; "" where they are.
    """
    if not isinstance(loader, ResumableLoader) or not isinstance(loader.dataset, MappedByPosition):
        return f"the loader is a {type(loader).__name__}"
    if loader.dataset.extensions:
        return "batches have more than images"
    return views_problem(loader.dataset.mapper, loader.dataset.records)


def _has(cache: FeatureCache | None, view: View) -> bool:
    return cache is not None and cache.has(view, training=True)


def _attach_predictor(cfg: CfgNode, model: nn.Module, training: bool = True) -> FeatureCache | None:
    cache = None
    if cfg.FEW_SHOT.CACHE != "off":
        store = TensorStore(cache_folder(cfg), cfg.FEW_SHOT.CACHE_GB)
        kind = "bfloat16" if cfg.SOLVER.AMP.ENABLED else "train"
        made_of = partial(features_fingerprint, cfg)
        cache = FeatureCache(model, store, made_of, BEFORE_PREDICTOR, partial(_view_bytes, model), kind)
    attach(model, PredictorAlone(model, cache, training))
    return cache


def attach(model: nn.Module, alone: Alone) -> None:
    """``alone`` becomes the forward pass of this instance: names of parameters and checkpoints stay."""
    model.forward = alone
    setattr(model, ALONE, alone)  # mixed precision wraps the forward pass once more


class FreshFeatures(HookBase):
    """Finds out at the start of a training whose features its model has, and says in the end what was computed."""

    def __init__(self, model: nn.Module) -> None:
        self._alone: Alone | None = getattr(model, ALONE, None)

    def before_train(self) -> None:
        if self._alone:
            self._alone.refresh()

    def after_train(self) -> None:
        if self._alone and self._alone.cache:
            self._alone.cache.say()


def _shares_features(cfg: CfgNode, model: nn.Module) -> bool:
    """Whether other models have the same features: those of a base, and those that only differ in the predictor."""
    if not cfg.FEW_SHOT.BENCHMARK:
        return False
    if cfg.FEW_SHOT.STAGE == BASE:
        return not other_form(model)
    return is_fine_tuning(cfg) and not _problem(cfg, model)


class _KnownTests:
    """The test views that are kept."""

    def __init__(self, cache: FeatureCache) -> None:
        self._cache = cache

    def fits(self, images: int) -> bool:
        return self._cache.fits(images)

    def has(self, view: View) -> bool:
        return self._cache.has(view, training=False)


@contextmanager
def evaluated_from_cache(cfg: CfgNode, model: nn.Module, final: bool = True) -> Iterator[None]:
    """Inside the block ``model`` takes the features of test images from the cache, where they are the same for all
    models of its base, and keeps those that are not there.

    Args:
        final: whether these are the weights that a training leaves: features of a base model are kept then only.
    """
    attached, forward = hasattr(model, ALONE), vars(model).get("forward")  # mixed precision has one of its own
    if not attached and final and cfg.FEW_SHOT.CACHE != "off" and _shares_features(cfg, model):
        _attach_predictor(cfg, model)
    alone = getattr(model, ALONE, None)
    cache = alone and alone.cache
    try:
        if cache is None:
            yield
        else:
            cache.refresh()
            with known_in_evaluation(_KnownTests(cache)):
                yield
            cache.say()
    finally:
        if not attached and alone is not None:
            delattr(model, ALONE)
            del model.forward
            if forward is not None:
                model.forward = forward
