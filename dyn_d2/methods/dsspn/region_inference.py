"""DSSPN at test time: pixels walk down the tree, and each neuron runs on the pixels that reached it (sec. 3.3).

Positions of the feature map are kept as rows, those of all images one after another, so that the positions that need a
neuron can be gathered, whatever the shape of their region. (A crop of the bounding box would be simpler, but a concept
like sky or road spans most of an image.) The 3x3 convolution multiplies first and gathers then: each needed row gives
its nine products with the kernel's taps, and an output is the sum of nine of them. That is the count of a convolution,
and only k instead of 256 channels are gathered nine times.

What a neuron inherits has to be known one position around its own region, at its ancestors one more, and so on. A
neuron therefore runs on its region grown by as many positions as there are neurons below it. Then its features equal
those of a network that runs all neurons everywhere, at all positions that count.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dyn_d2.gating import Cost, Step, current_trace
from dyn_d2.gating.decisions import fixed

from .label_plan import Decision, LabelPlan
from .neurons import TRANSITION

_RUNNER_UP = 0.999  # largest score of another label, as a share of the chosen one's


@torch.no_grad()
def classify_regions(head, plan: LabelPlan, x0: Tensor) -> Tensor:
    """(N, k_0, h, w) features of the transition -> (N, K, h, w) scores of the labels.

    At each neuron on its way a pixel goes on to the child with the highest probability p. With C the product of these,
    the score of the label at which it ends is C. Any other child of a neuron on the way that is a label itself gets
    C * p / max p at this neuron, at most 0.999 C, so that the arg-max is the way through the tree. All other labels
    get 0.

    Args:
        head: a :class:`~dyn_d2.methods.dsspn.head.DSSPNHead`.
    """
    count, _, height, width = x0.shape
    features = (_Regions if head.dynamic else _Everywhere)(head, plan, x0.float())
    start = torch.arange(count * height * width, device=x0.device)
    start = start[_inside_images(head.stride, x0)]
    ratio = x0.new_zeros(count * height * width, len(plan.concepts), dtype=torch.float32)
    confidence = torch.ones_like(ratio[:, 0])
    reached: dict[str, list[Tensor]] = {}
    if isinstance(plan.start, int):
        ratio[start, plan.start] = 1.0
    else:
        reached[plan.start] = [start]
    for name, decision in plan.decisions.items():
        rows = torch.cat(reached.pop(name, [start[:0]]))
        if not len(rows):
            continue
        logits = features.logits(name, rows)
        probability = logits.softmax(1) if head.softmax else logits.sigmoid()
        choice = logits.argmax(1)  # probabilities may saturate
        best = probability.gather(1, choice[:, None])[:, 0]
        confidence[rows] *= best
        for child, goal in enumerate(decision.goals):
            if isinstance(goal, int):
                share = (probability[:, child] / best.clamp(min=1e-30)).clamp(max=_RUNNER_UP)
                share[choice == child] = 1.0
                ratio[rows, goal] = torch.maximum(ratio[rows, goal], share)  # several ways may lead to a label
            else:
                reached.setdefault(goal, []).append(rows[choice == child])
    features.record()
    return (ratio * confidence[:, None]).reshape(count, height, width, -1).permute(0, 3, 1, 2)


def _inside_images(stride: int, x0: Tensor) -> Tensor:
    """(N * h * w,) bool: positions that are not padding only. One more is kept on each side, which the resizing to
    pixels looks at."""
    count, _, height, width = x0.shape
    kept = torch.ones(count, height, width, dtype=torch.bool, device=x0.device)
    trace = current_trace()
    sizes = trace.context.image_sizes if trace is not None else None
    for image, size in enumerate(sizes or ()):
        kept[image, -(-size[0] // stride) + 1 :] = False
        kept[image, :, -(-size[1] // stride) + 1 :] = False
    return kept.flatten()


class _Everywhere:
    """All neurons that the data set needs, on all positions: the fixed structure, and the reference of the other."""

    def __init__(self, head, plan: LabelPlan, x0: Tensor) -> None:
        self._head, self._plan, self._x0 = head, plan, x0
        maps = {TRANSITION: x0}
        for name in plan.needed:
            sources = [maps[source] for source in (TRANSITION, *head.above[name])]
            maps[name] = head.neuron(name)(head.combine(name, sources))
        self._logits = {
            name: head.neuron(name).scores(_as_rows(maps[name]), _children(decision))
            for name, decision in plan.decisions.items()
        }

    def logits(self, name: str, rows: Tensor) -> Tensor:
        """(len(rows), C) logits of the children that a neuron decides between."""
        return self._logits[name][rows]

    def record(self) -> None:
        """Write steps and costs into the trace, if somebody records."""
        count, _, height, width = self._x0.shape
        everywhere = torch.full((count,), height * width, device=self._x0.device)
        _record(self._head, self._plan, self._x0, lambda name: (everywhere, everywhere, everywhere))


class _Regions:
    """Neurons at the positions that need them, computed when they are asked for."""

    def __init__(self, head, plan: LabelPlan, x0: Tensor) -> None:
        count, channels, height, width = x0.shape
        self._head, self._plan, self._x0 = head, plan, x0
        self._positions, self._count = height * width, count * height * width
        self._around = _neighbours(count, height, width, x0.device)
        self._rows = {TRANSITION: _as_rows(x0)}
        self._done: dict[str, Tensor] = {}
        heights = dict.fromkeys(plan.needed, 0)
        for name in reversed(plan.needed):
            for above in head.above[name]:
                heights[above] = max(heights[above], heights[name] + 1)
        self._heights = heights
        self._read = {name: x0.new_zeros(count, dtype=torch.long) for name in plan.needed}  # rows per image
        self._made, self._decided = dict(self._read), dict(self._read)

    def logits(self, name: str, rows: Tensor) -> Tensor:
        """(len(rows), C) logits of the children that a neuron decides between."""
        wanted = torch.zeros(self._count, dtype=torch.bool, device=rows.device)
        wanted[rows] = True
        self._decided[name] = self._decided[name] + self._per_image(rows)
        for _ in range(self._heights[name]):
            wanted = self._grown(wanted.nonzero().flatten())
        self._ensure(name, wanted)
        return self._head.neuron(name).scores(self._rows[name][rows], _children(self._plan.decisions[name]))

    def _grown(self, rows: Tensor) -> Tensor:
        """(count,) bool: the rows and all around them."""
        mask = torch.zeros(self._count + 1, dtype=torch.bool, device=rows.device)
        mask[self._around[rows].flatten()] = True
        return mask[:-1]

    def _per_image(self, rows: Tensor) -> Tensor:
        return torch.bincount(rows // self._positions, minlength=len(self._x0))

    def _ensure(self, name: str, wanted: Tensor) -> None:
        """Compute the features of ``name`` at the positions ``wanted`` where they are not there yet.

        In a tree the margins around the regions see to it that ancestors are there already; with several parents, a
        pixel may come along one and need features of another.
        """
        known = self._done.get(name)
        missing = wanted if known is None else wanted & ~known
        rows = missing.nonzero().flatten()
        if not len(rows):
            return
        read = self._grown(rows)
        for above in self._head.above[name]:
            self._ensure(above, read)
        features = self._compute(name, rows, read.nonzero().flatten())
        if known is None:
            self._rows[name] = features.new_zeros(self._count, features.shape[1])
        self._rows[name][rows] = features
        self._done[name] = missing if known is None else known | missing

    def _compute(self, name: str, rows: Tensor, read: Tensor) -> Tensor:
        """(len(rows), k) features at ``rows`` from inputs at ``read``, the rows and all around them."""
        self._made[name] = self._made[name] + self._per_image(rows)
        self._read[name] = self._read[name] + self._per_image(read)
        neuron, inherited = self._head.neuron(name), (TRANSITION, *self._head.above[name])
        if len(rows) == self._count:
            return _as_rows(neuron(self._head.combine(name, [self._as_map(source) for source in inherited])))
        sources = [self._rows[source][read] for source in inherited]
        hidden: Any = None
        for conv, x in zip(neuron.reduce.values(), self._head.combine(name, sources), strict=True):
            part = F.linear(x, conv.weight.flatten(1), neuron.bias if hidden is None else None)
            hidden = part if hidden is None else hidden.add_(part)
        taps = neuron.evolve.weight.permute(2, 3, 0, 1).reshape(-1, hidden.shape[1])  # (9 k, bottleneck)
        products = F.linear(F.relu_(hidden), taps).float().reshape(len(read) * 9, -1)
        outside = products.new_zeros(9, products.shape[1])  # zero padding
        place = torch.full((self._count + 1,), len(read), device=rows.device)
        place[read] = torch.arange(len(read), device=rows.device)
        index = place[self._around[rows]] * 9 + torch.arange(9, device=rows.device)
        return F.relu_(F.embedding_bag(index, torch.cat([products, outside]), mode="sum") + neuron.evolve.bias)

    def _as_map(self, name: str) -> Tensor:
        count, _, height, width = self._x0.shape
        return self._rows[name].reshape(count, height, width, -1).permute(0, 3, 1, 2)

    def record(self) -> None:
        """Write steps and costs into the trace, if somebody records."""
        _record(
            self._head, self._plan, self._x0, lambda name: (self._read[name], self._made[name], self._decided[name])
        )


def _children(decision: Decision) -> tuple[str, ...]:
    """Those that the data set defines; without concept masking a neuron has learned others too."""
    return decision.children[: len(decision.goals)]


def _as_rows(x: Tensor) -> Tensor:
    """(N, C, h, w) -> (N * h * w, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _neighbours(count: int, height: int, width: int, device: torch.device) -> Tensor:
    """(N * h * w, 9) rows of the 3x3 positions around each, in the order of a kernel's taps; N * h * w for positions
    outside of the map."""
    rows = torch.arange(count * height * width, device=device).reshape(count, height, width)
    framed = F.pad(rows, (1, 1, 1, 1), value=rows.numel())
    shifted = [framed[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return torch.stack(shifted, -1).reshape(-1, 9)


def _record(head, plan: LabelPlan, x0: Tensor, rows_of: Callable[[str], tuple[Tensor, Tensor, Tensor]]) -> None:
    """``rows_of`` gives, per image, how many positions a neuron read, made and decided."""
    trace = current_trace()
    if trace is None:
        return
    positions = x0.shape[-2] * x0.shape[-1]
    for name in plan.needed:
        read, made, decided = rows_of(name)
        block, classifier = head.neuron(name).position_cost()
        children = len(plan.decisions[name].goals) if name in plan.decisions else 0
        dense = positions * (block + children * classifier)
        executed = read * block + decided * (children * classifier)
        trace.costs.append(Cost(head.units[name].name, dense, executed.float()))
        trace.task_steps.append(Step(head.units[name], fixed(made > 0)))
