"""Units of a frozen backbone that do not run again: what a policy reads between them is computed once for each view.

A policy that decides nothing but when to stop, from means over feature maps, and a classifier that predicts from these
means (``Policy.fixed_route``), need U + 1 small vectors of a view: the means before each of the U units, and behind
the last one. They are computed for all views before the first step and lie in one memory-mapped table, which runs
share whose frozen weights, data and route are the same. Policy, classifier, trace and costs are those of any forward
pass: only what ``GatedBackbone.forward`` does between two questions to the router is taken from the table.

Shape shorthand: N images of a batch, n of them have not stopped, V views, C channels, D of all U + 1 means together.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dyn_d2.data.classification.views import VIEW, NumberedRecords, NumberMapper, Views, label_views_problem
from dyn_d2.data.fingerprint import records_hash
from dyn_d2.data.resumable import check_readable, readable
from dyn_d2.engine.feature_cache import ALONE, frozen_fingerprint, loader_problem
from dyn_d2.engine.frozen_maps import maps_folder
from dyn_d2.modeling.freeze import what_moves
from dyn_d2.utils.errors import UserError
from dyn_d2.utils.tensor_store import TensorStore

from detectron2.config import CfgNode
from detectron2.utils import comm

from .decisions import Decision, fixed
from .policies.base import Policy
from .policies.gate_layers import pool_valid
from .routing import Router
from .trace import Cost, Trace, Unit, current_trace, recording

logger = logging.getLogger(__name__)

# Keys, or nodes of keys, of MODEL that the means do not depend on, and others that they do; the route counts by itself.
_APART = tuple(
    f"MODEL.{name}" for name in ("WEIGHTS", "DEVICE", "FREEZE", "POLICY", "IMAGE_CLASSIFIER", "TIMM.WEIGHTS")
)
_MAKES_MEANS = ("INPUT.FORMAT", "SOLVER.AMP.ENABLED")
_SAID = 10  # how often filling says in the log how far it is


class _Watch(Policy):
    """Opens the units of one route for all images, and notes down the means between them."""

    stops = True  # so that it is asked before each unit

    def __init__(self, units: Sequence[Unit], route: Sequence[bool]) -> None:
        super().__init__(units)
        self._route = route
        self.means: list[Tensor] = []  # each (N, C)
        self.costs: list[int] = []  # how many the trace had by then

    def decide(self, index: int, features: Tensor, state: None) -> Decision:
        return fixed(torch.full((len(features),), self._route[index], device=features.device))

    def stay(self, index: int, features: Tensor, state: None) -> None:
        trace = current_trace()
        assert trace is not None  # ``watched`` records one
        self.costs.append(len(trace.costs))
        self.means.append(pool_valid(features, None))


def watched(backbone: Any, images: Tensor, route: Sequence[bool]) -> tuple[Trace, _Watch]:
    """A forward pass of all units that ``route`` opens, from which no image leaves.

    Args:
        backbone: a gated one.
        images: (N, 3, H, W), normalised.
    """
    policy = backbone.policy
    watch = _Watch(policy.units, route)
    backbone.policy = watch
    try:
        with recording() as trace:
            backbone(images)
    finally:
        backbone.policy = policy
    return trace, watch


class _UnitCost(NamedTuple):
    """Of an open unit: ``each`` (1,) multiply-adds of an image, ``dense`` without gates."""

    name: str
    each: Tensor
    dense: float


class _FixedCost(NamedTuple):
    """Multiply-adds of an image of what no policy decides about, with gates and without."""

    name: str
    executed: float
    dense: float

    @classmethod
    def of(cls, costs: Sequence[Cost]) -> list["_FixedCost"]:
        return [cls(cost.name, float(cost.executed[0]), cost.dense) for cost in costs]


@dataclass(frozen=True)
class Course:
    """What a forward pass of a backbone does, but for the computation itself.

    Attributes:
        before, after: costs of what runs before the first unit and behind the last one.
        units: of each unit its cost, and the costs of what runs beside and behind it for the same images.
        channels: C of each of the U + 1 means.
    """

    before: list[_FixedCost]
    units: list[tuple[_UnitCost, list[_FixedCost]]]
    after: list[_FixedCost]
    channels: list[int]

    @classmethod
    def of(cls, backbone: Any, size: tuple[int, int]) -> "Course | None":
        """None for a backbone that does not ask before each of its units, once, which images go on.

        Args:
            size: (height, width) of the images.
        """
        units = backbone.policy.units
        images = torch.zeros(1, 3, *size, device=next(backbone.parameters()).device)
        with torch.no_grad():
            trace, watch = watched(backbone, images, [True] * len(units))
        if any(unit.kind != "block" for unit in units) or len(watch.means) != len(units) + 1:
            return None
        first, last = watch.costs[0], watch.costs[-1]
        parts = [trace.costs[start:end] for start, end in zip(watch.costs, watch.costs[1:], strict=False)]
        found = []
        for step, part in zip(trace.steps, parts, strict=True):
            own = [cost for cost in part if cost.name == step.unit.name]
            if len(own) != 1 or step.unit_cost is None:
                return None
            beside = _FixedCost.of([cost for cost in part if cost is not own[0]])
            found.append((_UnitCost(step.unit.name, step.unit_cost, own[0].dense), beside))
        channels = [values.shape[1] for values in watch.means]
        return cls(_FixedCost.of(trace.costs[:first]), found, _FixedCost.of(trace.costs[last:]), channels)


class KeptUnits:
    """Takes the place of the backbone in the training of an image classifier.

    Attributes:
        cache: None; in evaluation the backbone runs.
        size: (height, width) of all views.
    """

    cache = None

    def __init__(
        self,
        model: Any,
        views: Views,
        course: Course,
        store: TensorStore,
        fingerprint: Callable[[], str],
        *,
        batch: int,
        mixed: bool,
    ) -> None:
        """
        Args:
            model: an ``ImageClassifier``.
            views: of its training set.
            course: of its backbone, for images of that size.
            store: where the table lies.
            fingerprint: hash of all that the means depend on beside data and route.
            batch: how many views to compute at once.
            mixed: whether training computes in 16 bits.
        """
        self._model, self._views, self._course, self._store = model, views, course, store
        self._fingerprint, self._batch, self._mixed = fingerprint, batch, mixed
        self._data = ""
        self._key = ""
        self._means: Tensor | None = None
        self.size = views.size

    @property
    def gigabytes(self) -> float:
        """What the table takes, in 10^9 bytes."""
        return 4 * len(self._views) * sum(self._course.channels) / 1e9

    def refresh(self) -> None:
        """See whose means these are, as weights may be others now, and compute those of all views where that has not
        been done. All processes of a training have to call this."""
        route = self._model.backbone.policy.fixed_route()
        self._data = self._data or f"{records_hash(self._views.records)} {self._views.each}"
        text = f"{self._fingerprint()} {self._data} {list(route)}"
        key = f"units/{hashlib.sha256(text.encode()).hexdigest()[:24]}"
        if key == self._key:
            return
        if comm.is_main_process():
            self._means = self._table(key, route)
        comm.synchronize()
        if not comm.is_main_process():
            self._means = self._table(key, route)
        self._key = key

    def __call__(self, inputs: list[dict[str, Any]]) -> None:
        """Record the forward pass of a batch of ``NumberMapper``'s inputs in the current trace."""
        if self._means is None:
            self.refresh()
        assert self._means is not None
        policy, device = self._model.backbone.policy, self._model.device
        means = self._means[[x[VIEW] for x in inputs]].to(device).split(self._course.channels, 1)
        router = Router(policy, torch.zeros((), device=device).expand(len(inputs), 3, *self.size))  # shape and device
        trace = router.trace

        def between(index: int) -> Tensor:
            """(n, C, 1, 1), the maps before a unit as a policy sees them."""
            rows = trace.context.rows
            return (means[index] if rows is None else means[index][rows])[:, :, None, None]

        _add_costs(trace, self._course.before, between(0))
        for index, (unit, beside) in enumerate(self._course.units):
            x = router.leave(between(index))
            router.record_units(unit.name, router.decide(x, unit.each), unit.each, unit.dense)
            _add_costs(trace, beside, x)
        _add_costs(trace, self._course.after, router.finish(between(len(self._course.units))))

    def _table(self, key: str, route: Sequence[bool]) -> Tensor:
        """(V, D) means of all views."""
        found = self._store.read(key)
        if found is not None:
            logger.info(f"means of frozen units: those of {len(self._views):,} views read from {self._store.folder}")
            return found["means"]
        means = self._computed(route)
        self._store.write(key, {"means": means})
        return means

    def _computed(self, route: Sequence[bool]) -> Tensor:
        model, count, began = self._model, len(self._views), time.perf_counter()
        means = torch.empty(count, sum(self._course.channels))
        shown = max(1, count // self._batch // _SAID)
        with self._as_in_training():
            for number, start in enumerate(range(0, count, self._batch), 1):
                inputs = [readable(*self._views[i]) for i in range(start, min(start + self._batch, count))]
                images = model.preprocess_image(check_readable(inputs)).tensor
                if tuple(images.shape[-2:]) != self.size:
                    raise UserError(
                        f"an image is {tuple(images.shape[-2:])} pixels as the network gets it, and not {self.size} as "
                        "the others: set FEATURE_CACHE.MODE off."
                    )
                _, watch = watched(model.backbone, images, route)
                means[start : start + len(inputs)] = torch.cat(watch.means, 1).detach().cpu()
                if number % shown == 0:
                    done, seconds = start + len(inputs), time.perf_counter() - began
                    left = seconds * (count / done - 1)
                    logger.info(f"means of frozen units: {done:,} of {count:,} views, about {left:.0f} s to go")
        logger.info(f"means of frozen units: {count:,} views took {time.perf_counter() - began:.0f} s")
        return means

    @contextmanager
    def _as_in_training(self) -> Iterator[None]:
        """The backbone computes what it does in a training step, to the last digit: gradients are on, too, although
        nothing has one, as kernels may depend on that."""
        backbone, device = self._model.backbone, self._model.device.type
        training, _ = backbone.training, backbone.train()
        try:
            kind = torch.bfloat16 if device == "cpu" else torch.float16
            with torch.enable_grad(), torch.autocast(device, kind, enabled=self._mixed):
                yield
        finally:
            backbone.train(training)


def _add_costs(trace: Trace, costs: Sequence[_FixedCost], like: Tensor) -> None:
    for cost in costs:
        trace.add_fixed(cost.name, cost.executed, like, cost.dense)


def keep_units(cfg: CfgNode, model: Any, loader: Any) -> str:
    """Have an image classifier take the units of its backbone from a table in training, and ``loader`` leave out the
    images; "", or why that cannot be: then nothing changes.

    Args:
        model: an ``ImageClassifier``.
        loader: of its training set.
    """
    backbone = model.backbone
    policy = getattr(backbone, "policy", None)
    if policy is None or model.module_classifier is None or policy.fixed_route() is None:
        return (
            "that takes a gated backbone and a policy that stops images, and predicts, from means of feature maps "
            f"alone, as MODEL.POLICY.NAME {cfg.MODEL.POLICY.NAME} does not"
        )
    parts = [f"backbone.{name}" for name, part in backbone.named_children() if part is not policy]
    if problem := what_moves(model, parts, "the policy") or loader_problem(loader, label_views_problem):
        return problem
    views = Views(loader.dataset.mapper, loader.dataset.records)
    course = Course.of(backbone, views.size)
    if course is None:
        return f"a {type(backbone).__name__} does not ask before each of its units which images go on"
    store = TensorStore(maps_folder(cfg), cfg.FEATURE_CACHE.GB, "FEATURE_CACHE.GB")
    fingerprint = partial(frozen_fingerprint, cfg, model, parts, _APART, _MAKES_MEANS)
    kept = KeptUnits(
        model, views, course, store, fingerprint, batch=cfg.SOLVER.IMS_PER_BATCH, mixed=cfg.SOLVER.AMP.ENABLED
    )
    if kept.gigabytes > cfg.FEATURE_CACHE.GB:
        return f"{len(views):,} views take {kept.gigabytes:.2g} GB, more than FEATURE_CACHE.GB {cfg.FEATURE_CACHE.GB:g}"
    logger.info(f"no unit learns: means of {len(views):,} views, {kept.gigabytes:.2g} GB, are kept in {store.folder}")
    setattr(model, ALONE, kept)
    loader.dataset.records, loader.dataset.mapper = NumberedRecords(views.records), NumberMapper(loader.dataset.mapper)
    return ""
