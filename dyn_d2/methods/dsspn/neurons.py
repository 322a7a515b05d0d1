"""The layers of DSSPN: the transition from the backbone and the semantic neurons (Liang et al. 2018, sec. 3.1 and 3.2).

All layers that belong to a concept are addressed by its name, so that concepts can be added and taken away without a
change to the rest (:mod:`dyn_d2.methods.dsspn.surgery`).
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyn_d2.hierarchy import Hierarchy

TRANSITION, ANCESTORS = "transition", "ancestors"  # sources of a neuron that are no concept


def key_of(concept: str) -> str:
    """Name of a concept's module. The brackets keep a concept named "train" from hiding the method of that name. Module
    names have no dots, which become "%2e"."""
    return f"<{concept.replace('%', '%25').replace('.', '%2e')}>"


def source_key(source: str) -> str:
    return source if source in (TRANSITION, ANCESTORS) else key_of(source)


def check_names(tree: Hierarchy) -> None:
    """
    Raises:
        ValueError: a concept with children, whose neuron others may read, has the name of a source that is no concept.
    """
    for name in (TRANSITION, ANCESTORS):
        if name in tree.neurons:
            raise ValueError(
                f"concept {name!r} of the tree {tree.name} has children, and DSSPN calls something else so: give it "
                f"another name, for instance {name.capitalize()!r}."
            )


class Transition(nn.Module):
    """l_0: parallel dilated 3x3 convolutions (atrous spatial pyramid), summed, then ReLU. (N, C, h, w) to
    (N, k_0, h, w)."""

    def __init__(self, in_channels: int, out_channels: int, rates: Sequence[int] = (6, 12, 18)) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, out_channels, 3, padding=rate, dilation=rate) for rate in rates
        )
        conv: Any
        for conv in self.branches:
            nn.init.normal_(conv.weight, std=sqrt(2 / (9 * in_channels * len(rates))))
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.branches
        total = first(x)
        for conv in others:
            total += conv(x)
        return F.relu_(total)


class SemanticNeuron(nn.Module):
    """A dense semantic-enhanced block and one classifier for each child.

    x_i = ReLU(Conv3x3(ReLU(Conv1x1([x_0, x_j for all ancestors j])))). All inputs are outputs of a ReLU, which the ReLU
    that the paper puts in front would not change. The 1x1 convolution of the concatenation is computed as a sum of 1x1
    convolutions of its parts: the same numbers, and no copy of the ancestors' features is kept for the backward pass
    (sec. 3.6: memory is linear in the depth).

    Attributes:
        sources: names of what it reads: :data:`TRANSITION`, concepts, or :data:`ANCESTORS` for their sum.
        labels: names of the children.
    """

    def __init__(self, sources: Mapping[str, int], children: Sequence[str], *, bottleneck: int, width: int) -> None:
        """
        Args:
            sources: name -> channels.
            children: concepts below.
            bottleneck: channels between the 1x1 and the 3x3 convolution.
            width: k, channels of x_i.
        """
        super().__init__()
        self.sources, self.labels = tuple(sources), tuple(children)
        self.reduce = nn.ModuleDict(
            {source_key(name): nn.Conv2d(channels, bottleneck, 1, bias=False) for name, channels in sources.items()}
        )
        self.bias = nn.Parameter(torch.zeros(bottleneck))
        self.evolve = nn.Conv2d(bottleneck, width, 3, padding=1)
        self.classify = nn.ModuleDict({key_of(child): nn.Conv2d(width, 1, 1) for child in children})
        for name, parameter in self.named_parameters():
            nn.init.normal_(parameter, std=self.initial_std(name))

    def _inputs(self) -> int:
        """Channels of all sources together."""
        return sum(conv.in_channels for conv in self.reduce.values() if isinstance(conv, nn.Conv2d))

    def initial_std(self, parameter: str) -> float:
        """Standard deviation of the random start of a parameter, by its name within the neuron."""
        if parameter.endswith("bias"):
            return 0.0
        inputs = self._inputs()
        layers = {"reduce": sqrt(2 / inputs), "evolve": sqrt(2 / (9 * self.evolve.in_channels)), "classify": 0.01}
        return layers[parameter.partition(".")[0]]

    def forward(self, sources: Sequence[Tensor]) -> Tensor:
        """One (N, channels, h, w) tensor for each of ``sources`` -> (N, width, h, w)."""
        reduce: list[Any] = list(self.reduce.values())
        first, *others = zip(reduce, sources, strict=True)
        hidden = F.conv2d(first[1], first[0].weight, self.bias)
        for conv, x in others:
            hidden += conv(x)
        return F.relu_(self.evolve(F.relu_(hidden)))

    def classifier(self, children: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Weight (C, width) and bias (C,) of the classifiers of some children."""
        chosen: list[Any] = [self.classify[key_of(child)] for child in children]
        return torch.cat([conv.weight.flatten(1) for conv in chosen]), torch.cat([conv.bias for conv in chosen])

    def scores(self, features: Tensor, children: Sequence[str]) -> Tensor:
        """(..., width) features -> (..., C) logits of some children."""
        return F.linear(features, *self.classifier(children))

    def position_cost(self) -> tuple[float, float]:
        """Multiply-adds of ``forward`` at one position of the map, and of one classifier."""
        reduce = self._inputs() * self.evolve.in_channels
        return float(reduce + self.evolve.weight.numel()), float(self.evolve.out_channels)
