"""A tree of layers through which each image takes one path ("Deciding How to Decide", McGill and Perona 2017).

Shape shorthand: N images, layer l with n_l sinks (an exit and children), scores r_l (N, n_l) of the router at a layer
with two sinks or more. Everything here is arithmetic on such tensors; layers and routers are elsewhere.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

EXIT = -1  # a sink that is no layer: the classifier behind this one
FLOOR = 1e-6  # epsilon: about the probability that each exit keeps


@dataclass(frozen=True)
class PathTree:
    """Layers 0 (the root), 1, ...; parents come before their children.

    Attributes:
        children: of each layer.
        exits: whether the layer has an exit.
    """

    children: tuple[tuple[int, ...], ...]
    exits: tuple[bool, ...]

    @classmethod
    def chain(cls, depth: int) -> "PathTree":
        """After each layer an exit and the next layer; the last layer has its exit only."""
        return cls(_in_a_row(depth), (True,) * depth)

    @classmethod
    def static(cls, depth: int) -> "PathTree":
        """A chain whose only exit is at its end: nothing to decide."""
        return cls(_in_a_row(depth), (False,) * (depth - 1) + (True,))

    @classmethod
    def branching(cls, depth: int, splits: int) -> "PathTree":
        """Each of the first ``splits`` levels has an exit and two copies of what follows, the others are chains."""
        levels: list[int] = [0]
        children: list[tuple[int, ...]] = [()]
        layer = 0
        while layer < len(levels):
            level = levels[layer]
            own = [len(levels) + i for i in range((2 if level < splits else 1) if level + 1 < depth else 0)]
            children[layer] = tuple(own)
            levels += [level + 1] * len(own)
            children += [()] * len(own)
            layer += 1
        return cls(tuple(children), (True,) * len(children))

    def __len__(self) -> int:
        return len(self.children)

    def sinks(self, layer: int) -> tuple[int, ...]:
        """The exit first: where all scores are equal, as at the start of training, paths are short."""
        return ((EXIT,) if self.exits[layer] else ()) + self.children[layer]

    @property
    def junctions(self) -> list[int]:
        """Layers with a choice."""
        return [layer for layer in range(len(self)) if len(self.sinks(layer)) > 1]

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """Depth of each layer, 0 for the root."""
        found = [0] * len(self)
        for layer, children in enumerate(self.children):
            for child in children:
                found[child] = found[layer] + 1
        return tuple(found)

    @cached_property
    def leaves(self) -> tuple[int, ...]:
        """Exits at and below each layer."""
        found = [0] * len(self)
        for layer in reversed(range(len(self))):
            found[layer] = int(self.exits[layer]) + sum(found[child] for child in self.children[layer])
        return tuple(found)

    @cached_property
    def deepest(self) -> tuple[int, ...]:
        """The layers of the path that takes the last child until there is none."""
        path = [0]
        while self.children[path[-1]]:
            path.append(self.children[path[-1]][-1])
        return tuple(path)


def _in_a_row(depth: int) -> tuple[tuple[int, ...], ...]:
    return tuple((layer + 1,) if layer + 1 < depth else () for layer in range(depth))


@dataclass
class PathShares:
    """Probability, or hard choice, (N,) of each layer, and of each exit by its layer."""

    layers: list[Tensor]
    exits: dict[int, Tensor]

    def detached(self) -> "PathShares":
        return PathShares([p.detach() for p in self.layers], {layer: p.detach() for layer, p in self.exits.items()})


def path_probabilities(
    tree: PathTree, scores: Mapping[int, Tensor], tau: float, like: Tensor, floor: float = FLOOR
) -> PathShares:
    """p of the training policy: p(root) = 1; p(sink) = p(l) pi with pi = (1 - eps_l / p(l)) softmax(r / tau) + eps_i /
    p(l), eps_l = floor * leaves(l) / leaves(root), so that each exit keeps about ``floor / leaves(root)``.

    Args:
        scores: (N, n_l) of each junction.
        tau: temperature.
        like: (N, ...), says how many images, and where.
    """

    def split(layer: int, p: Tensor) -> Tensor:
        sinks = tree.sinks(layer)
        own = scores[layer].float() / tau
        least = torch.tensor([1 if s == EXIT else tree.leaves[s] for s in sinks], device=p.device)
        least = floor * least / tree.leaves[0]
        # p(l) pi_i, without the division by p(l).
        return (p - floor * tree.leaves[layer] / tree.leaves[0])[:, None] * own.softmax(1) + least

    return _flow(tree, split, like)


def greedy_paths(tree: PathTree, scores: Mapping[int, Tensor], like: Tensor) -> PathShares:
    """1 where the path of the greatest scores goes, else 0."""

    def split(layer: int, p: Tensor) -> Tensor:
        chosen = scores[layer].argmax(1, keepdim=True)
        return p[:, None] * torch.zeros_like(scores[layer], dtype=p.dtype).scatter_(1, chosen, 1.0)

    return _flow(tree, split, like)


def _flow(tree: PathTree, split: Callable[[int, Tensor], Tensor], like: Tensor) -> PathShares:
    layers = {0: torch.ones(len(like), device=like.device)}
    exits: dict[int, Tensor] = {}
    for layer in range(len(tree)):
        p, sinks = layers[layer], tree.sinks(layer)
        parts = split(layer, p).unbind(1) if len(sinks) > 1 else (p,)
        for sink, part in zip(sinks, parts, strict=True):
            if sink == EXIT:
                exits[layer] = part
            else:
                layers[sink] = part
    return PathShares([layers[layer] for layer in range(len(tree))], exits)


def costs_to_go(
    tree: PathTree,
    scores: Mapping[int, Tensor],
    exit_costs: Mapping[int, Tensor],
    layer_costs: Sequence[float | Tensor],
    optimistic: bool = False,
) -> dict[int, Tensor]:
    """(N, n_l) for each junction: what it costs from each of its sinks on, without gradient.

    Pragmatic: the paths below take what their routers now score highest. Optimistic: what is cheapest.

    Args:
        exit_costs: (N,) of each exit, by its layer.
        layer_costs: of each layer with its router, in the same unit; of all images or of each (N,).
    """
    found: dict[int, Tensor] = {}
    value: dict[int, Tensor] = {}
    for layer in reversed(range(len(tree))):
        sinks = [exit_costs[layer].detach() if s == EXIT else value[s] for s in tree.sinks(layer)]
        if len(sinks) == 1:
            value[layer] = layer_costs[layer] + sinks[0]
            continue
        found[layer] = torch.stack(sinks, 1)
        chosen = found[layer].argmin(1) if optimistic else scores[layer].argmax(1)
        value[layer] = layer_costs[layer] + found[layer].gather(1, chosen[:, None]).squeeze(1)
    return found


def throughput_rate(shares: Tensor) -> Tensor:
    """Factor of the gradient of a layer that an image passes with probability ``shares`` (N,): 1 / sqrt(mean p^2), the
    throughput-adjusted learning rate (TALR)."""
    return shares.detach().square().mean().clamp(min=1e-12).rsqrt()
