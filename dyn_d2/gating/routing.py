"""Between a gated backbone and its policy: one forward pass asks, in order, what to run, and writes it down."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dyn_d2.utils.errors import UserError

from .cost import executed_by
from .decisions import Decision
from .execution import gather, move_to_front
from .exporting import is_exporting
from .trace import Cost, Step, Trace, Unit, current_trace, spread

if TYPE_CHECKING:
    from .policies.base import Policy


class Router:
    """The decisions of one forward pass.

    A gated backbone makes one at the start of ``forward`` and hands it to its blocks; each block asks for the decisions
    of its units in the order in which the backbone lists them, and records what its computation cost.

    Some policies stop images for good. Before each gated block the backbone calls ``leave``, which takes the images
    that stop out of the batch: nothing that comes later sees them. Shape shorthand: N images, n not stopped.

    Attributes:
        trace: what this forward pass is recorded in.
        overwrite: whether the next block may overwrite its input; set by the backbone, which knows what it returns.
    """

    def __init__(self, policy: "Policy", images: Tensor) -> None:
        """
        Args:
            policy: decides about the units of the backbone.
            images: (N, 3, H, W), normalised and padded, as the backbone gets them.

        Raises:
            UserError: a policy that is trained by losses of its own, and no meta-architecture that adds them.
        """
        recorded = current_trace()
        if recorded is None and policy.training and policy.adds_to_task and torch.is_grad_enabled():
            raise UserError(
                f"{type(policy).__name__} is trained by losses that this meta-architecture would not add: set "
                "MODEL.META_ARCHITECTURE to DynamicRCNN, DynamicRetinaNet, DynamicSegmentor or ImageClassifier (own "
                "code runs the backbone inside dyn_d2.gating.recording() and adds policy.training_losses)."
            )
        self.trace = Trace() if recorded is None else recorded
        self._context = self.trace.context
        self._context.images = images.shape[0]  # a symbol, perhaps, which len would fix
        self._policy, self._next, self._finished = policy, 0, False
        self.overwrite = False
        sizes = self._context.image_sizes
        padded = sizes is not None and any(tuple(size) != tuple(images.shape[-2:]) for size in sizes)
        self._context.state = policy.begin(images, sizes if padded else None)
        cost = policy.begin_cost(*images.shape[-2:])
        if cost:
            self.trace.add_fixed("policy", cost, images, gate=True)

    def decide(self, features: Tensor, unit_cost: Tensor | None = None) -> Decision:
        """The decision for the next unit, about the n images that have not stopped.

        Args:
            features: (n, C, H, W), the input of the unit's block.
            unit_cost: (size,) multiply-adds per image of each element of the unit when open; None for channels.
        """
        unit: Unit = self._policy.units[self._next]
        decision = self._policy.decide(self._next, features, self._context.state)
        if self._policy.frozen:  # through the features there would be a gradient even so
            decision = decision.detached()
        cost = self._policy.decision_cost(self._next, *features.shape[-2:])
        if cost:
            self.trace.add_fixed(f"policy.{unit.name}", cost, features, gate=True)
        whole = decision if self._context.rows is None else replace(decision, gate=self._context.spread(decision.gate))
        self.trace.steps.append(Step(unit, whole, unit_cost))
        self._next += 1
        return decision

    def leave(self, features: Tensor, overwrite: bool = False) -> Tensor:
        """``features`` (n, C, H, W), the input of the next unit's block, without the images that stop before it.

        Args:
            overwrite: whether ``features`` may be overwritten; the images that go on then change their order.
        """
        if not self._policy.stops:
            return features
        cost = self._policy.stay_cost(self._next)
        if cost:
            self.trace.add_fixed(f"policy.stay.{self._next}", cost, features, gate=True)
        stay = self._policy.stay(self._next, features, self._context.state)
        if stay is None or bool(stay.all()):
            return features
        if overwrite:
            features, kept = move_to_front(features, stay)
        else:
            kept = stay.nonzero()[:, 0]
            features = gather(features, kept)
        self._policy.keep(kept, self._context.state)
        self._context.rows = kept if self._context.rows is None else self._context.rows[kept]
        return features

    @property
    def due(self) -> bool:
        """Whether all units have been decided about, so that ``finish`` has to be called."""
        return self._next == len(self._policy.units) and not self._finished

    def finish(self, features: Tensor) -> Tensor:
        """Called after the last gated block with its output (n, C, H, W).

        Returns:
            (N, C, H, W), zeros for the images that have stopped.
        """
        features = self.whole(self.leave(features))
        self._context.rows, self._finished = None, True
        self.trace.levels = self._policy.taken_levels(self._context.state)
        return features

    def whole(self, features: Tensor) -> Tensor:
        """The same as (N, C, H, W), zeros for the images that have stopped."""
        return self._context.spread(features)

    def record_units(self, name: str, decision: Decision, unit_cost: Tensor, dense: float | None = None) -> None:
        """Record the cost of a block or of groups whose open elements alone were computed.

        Args:
            unit_cost: (size,), as for ``decide``.
            dense: of the network without gates; None: the sum of ``unit_cost``.
        """
        if is_exporting():
            return
        shape, rows, images = (len(decision.gate), len(unit_cost)), self._context.rows, self._context.images

        def executed() -> Tensor:
            return spread(executed_by(decision.open.reshape(shape), unit_cost), rows, images)

        def expected() -> Tensor:
            prob = decision.gate if decision.prob is None else decision.prob
            return spread(executed_by(prob.reshape(shape), unit_cost), rows, images)

        total = float(unit_cost.sum()) if dense is None else dense
        self.trace.costs.append(Cost(name, total, executed, None if decision.prob is None else expected))
