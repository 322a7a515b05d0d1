"""The trace: what each image's decisions were and what was computed for it. The only count of computation there is.

A :class:`Trace` is a ledger, which evaluators, budget losses, plots and tables read. What the parts of a model tell
each other during the forward pass lies apart from it, in its :class:`Context`.

Costs are multiply-adds of convolutions and linear layers, as in the papers. Not counted: normalisation, activation,
pooling, residual additions and resizing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cost import unit_costs
from .decisions import Decision


@dataclass(frozen=True)
class Unit:
    """Something that a policy can switch off.

    Attributes:
        name: of the module in the backbone, e.g. "res3.1".
        kind: "block", "group" or "channel"; "neuron" for a semantic neuron.
        channels: of the feature map that the policy sees.
        size: how many elements are decided: 1 for a block, the number of groups or of channels.
        stage: number of the stage, from 0.
        out_channels: of the feature map that its block gives; 0 where nobody needs it.
    """

    name: str
    kind: str
    channels: int
    size: int = 1
    stage: int = 0
    out_channels: int = 0


@dataclass
class Step:
    """One decision: ``unit_cost`` (size,) are the multiply-adds of each element of the unit, per image, when it is
    open; None for channels, whose cost is a product of two decisions."""

    unit: Unit
    decision: Decision
    unit_cost: Tensor | None = None


Amount = Tensor | Callable[[], Tensor]


class Cost:
    """Multiply-adds of one part of the network.

    Attributes:
        name: of the module.
        dense: per image, of the network without gates; 0 for what exists only because of the gates. The mean, where
            images of a batch differ in it.
        dense_of_each: (N,) of each image, where they differ; else None.
        executed: (N,) what was computed; closed parts that training ran only for a gradient are not counted.
        expected: (N,) under the probabilities of the policy, with gradient; equal to ``executed`` where it has none.
        gate: whether this is the cost of deciding.
    """

    def __init__(
        self,
        name: str,
        dense: float | Sequence[float],
        executed: Amount,
        expected: Amount | None = None,
        gate: bool = False,
    ) -> None:
        """``executed`` and ``expected`` are tensors, or functions that compute them when somebody asks: a forward pass
        that nobody watches should not pay for its accounts. ``dense`` is one number for all images, or one for each."""
        self.name, self.gate = name, gate
        self.dense_of_each = list(dense) if isinstance(dense, Sequence) else None
        self.dense = sum(dense) / max(len(dense), 1) if isinstance(dense, Sequence) else dense
        self._executed, self._expected = executed, executed if expected is None else expected

    @cached_property
    def executed(self) -> Tensor:
        return self._executed() if callable(self._executed) else self._executed

    @cached_property
    def expected(self) -> Tensor:
        if self._expected is self._executed:
            return self.executed
        return self._expected() if callable(self._expected) else self._expected


@dataclass
class TakenLevels:
    """Which of M knowledge levels the modules of a network took: ``modules`` maps unit names to bool (N, M)."""

    names: tuple[str, ...]
    modules: dict[str, Tensor]


@dataclass
class Route:
    """The trace of one image, as numpy: ``open`` maps unit names to bool arrays (size,); costs in multiply-adds.

    ``levels`` maps names of modules to bool arrays over ``level_names``, where modules take knowledge levels.
    """

    open: dict[str, np.ndarray]
    dense: float
    executed: float
    expected: float
    gates: float
    level_names: tuple[str, ...] = ()
    levels: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Context:
    """What one forward pass over a batch of N images knows beside its ledger: the meta-architecture, the backbone, the
    policy and the heads tell each other here, and nobody reads it once the losses are there.

    Attributes:
        image_sizes: (height, width) of each image before padding; None where nobody said.
        labels: (N,) image-level classes where the task has them.
        image_losses: (N,) the task's loss of each image, without gradient, where the task has one.
        accuracies: (N,) how right the prediction for each image is, in [0, 1], where the task knows it.
        greedy: the trace of the same batch under the most likely decisions, where the policy asked for it.
        state: what the policy keeps during the forward pass, see :class:`dyn_d2.gating.policies.Policy`; where there is
            no policy, what decides in its place may keep something here.
        images: N, once the forward pass has begun.
        rows: int64 (n,), the images that have not stopped, in the order in which they lie in the feature maps; None for
            all of them.
    """

    image_sizes: Sequence[tuple[int, int]] | None = None
    labels: Tensor | None = None
    image_losses: Tensor | None = None
    accuracies: Tensor | None = None
    greedy: "Trace | None" = None
    state: Any = None
    images: int = 0
    rows: Tensor | None = None

    def spread(self, values: Tensor) -> Tensor:
        """``values`` (n, ...) of the images that have not stopped as (N, ...), 0 for those that have."""
        return spread(values, self.rows, self.images)


@dataclass
class Trace:
    """The ledger of one forward pass of a dynamic network over a batch of N images.

    Attributes:
        steps: the decisions of the policy in the order in which they were taken.
        task_steps: decisions behind the backbone that no policy takes, such as which parts of a head ran.
        costs: of all parts of the backbone, gates included.
        levels: what modules recognise, where a policy chooses that.
        context: of the forward pass; no part of the ledger.
    """

    steps: list[Step] = field(default_factory=list)
    task_steps: list[Step] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    levels: TakenLevels | None = None
    context: Context = field(default_factory=Context)

    def dense(self) -> float:
        """Multiply-adds per image of the network without gates; the mean, where images of a batch differ in them."""
        return sum(cost.dense for cost in self.costs)

    def dense_of(self, image: int) -> float:
        """Multiply-adds of the network without gates for one image of the batch."""
        return sum(cost.dense if (own := cost.dense_of_each) is None else own[image] for cost in self.costs)

    def executed(self) -> Tensor:
        """(N,) multiply-adds that were computed, gates included."""
        return torch.stack([cost.executed for cost in self.costs]).sum(0)

    def expected(self) -> Tensor:
        """(N,) multiply-adds under the policy's probabilities, gates included, with gradient."""
        return torch.stack([cost.expected for cost in self.costs]).sum(0)

    def gates(self) -> Tensor:
        """(N,) the part of ``executed`` that was spent on deciding."""
        own = [cost.executed for cost in self.costs if cost.gate]
        return torch.stack(own).sum(0) if own else torch.zeros_like(self.executed())

    def rates(self) -> dict[str, float]:
        """Share of images (and groups, channels) for which each unit was open."""
        return {step.unit.name: float(step.decision.open.float().mean()) for step in self.steps}

    def routes(self) -> list[Route]:
        """The trace taken apart by image; ready to be kept after the forward pass."""
        steps = (*self.steps, *self.task_steps)
        opened = {step.unit.name: step.decision.open.cpu().numpy() for step in steps}
        columns = [column.detach().cpu().tolist() for column in (self.executed(), self.expected(), self.gates())]
        taken = {} if self.levels is None else {k: v.cpu().numpy() for k, v in self.levels.modules.items()}
        return [
            Route(
                {name: np.atleast_1d(value[i]) for name, value in opened.items()},
                self.dense_of(i),
                executed,
                expected,
                gates,
                level_names=self.levels.names if self.levels else (),
                levels={name: value[i] for name, value in taken.items()},
            )
            for i, (executed, expected, gates) in enumerate(zip(*columns, strict=True))
        ]

    def add_fixed(self, name: str, cost: float, like: Tensor, dense: float | None = None, gate: bool = False) -> None:
        """Record a part that runs for every image that has not stopped.

        Args:
            cost: multiply-adds per image.
            like: any tensor of those images, (n, ...).
            dense: of the network without gates, where that is another number.
            gate: whether it is a cost of deciding; such a part costs the dense network nothing.
        """
        rows, images = self.context.rows, self.context.images
        count, device = like.shape[0], like.device  # not the map itself

        def each() -> Tensor:
            return spread(unit_costs(float(cost), count, device), rows, images)

        self.costs.append(Cost(name, (0.0 if gate else cost) if dense is None else dense, each, gate=gate))


def spread(values: Tensor, rows: Tensor | None, images: int) -> Tensor:
    """``values`` (n, ...) of the images ``rows`` as (images, ...), 0 for the others; as they are where rows is None."""
    if rows is None:
        return values
    return values.new_zeros(images, *values.shape[1:]).index_copy(0, rows, values)


_current: ContextVar[Trace | None] = ContextVar("dyn_d2_trace", default=None)


@contextmanager
def recording() -> Iterator[Trace]:
    """What dynamic networks do inside the block is recorded in the trace that it yields. Blocks may be nested: the
    innermost records."""
    trace = Trace()
    token = _current.set(trace)
    try:
        yield trace
    finally:
        _current.reset(token)


def current_trace() -> Trace | None:
    """The trace of the innermost ``recording`` block; None outside of any."""
    return _current.get()
