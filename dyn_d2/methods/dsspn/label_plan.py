"""What the labels of one data set ask of a concept tree: which neurons decide, between which children.

Liang et al. 2018, sec. 3.3 and 3.4. Shape shorthand: K - labels of the data set, V - neurons of the tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dyn_d2.hierarchy import Hierarchy


def tree_neurons(tree: Hierarchy) -> tuple[str, ...]:
    """The concepts with two children or more, parents first: one semantic neuron each (sec. 3.1). A concept with one
    child has nothing to decide."""
    return tuple(concept for concept in tree.neurons if len(tree.children[concept]) > 1)


def neurons_above(tree: Hierarchy, neuron: str) -> tuple[str, ...]:
    """The neurons whose features a neuron inherits (Q_i of Eq. 1): those of all its ancestors, root first."""
    above = tree.ancestors(neuron)
    return tuple(name for name in tree_neurons(tree) if name in above)


@dataclass(frozen=True)
class Decision:
    """What one neuron decides for one data set.

    Attributes:
        neuron: its concept.
        children: those that it tells apart.
        goals: where a pixel of each child goes on: the number of a label (int), or the next neuron that decides.
        columns: where the children stand in ``LabelPlan.below``.
    """

    neuron: str
    children: tuple[str, ...]
    goals: tuple[int | str, ...]
    columns: slice


class LabelPlan(nn.Module):
    """The sub-graph of a tree that leads to the labels of one data set. It has no parameters.

    Attributes:
        concepts: (K,) the concept of each label.
        start: where every pixel starts: the first neuron that decides, or the number of the only label.
        decisions: name -> :class:`Decision` of the neurons that decide between two children or more, parents first.
        needed: names of all neurons that run if everything is there: those that decide and all above them, whose
            features they inherit.
        below: (K, sum of children) bool; which children of ``decisions`` each label lies on or below.
        inside: (K, D) bool; which of the D neurons of ``decisions`` each label lies below.
    """

    below: Tensor
    inside: Tensor

    def __init__(self, tree: Hierarchy, concepts: Sequence[str], masking: bool = True) -> None:
        """
        Args:
            concepts: of the labels, in the data set's order.
            masking: concept masking (sec. 3.4); False: children that the data set does not define are taken for absent
                ones in training.
        """
        super().__init__()
        self.concepts, self._tree = tuple(concepts), tree
        self._number = {concept: number for number, concept in enumerate(self.concepts)}
        wanted = set(self.concepts)
        self._leads = wanted.union(*(tree.ancestors(concept) for concept in self.concepts))
        self.decisions: dict[str, Decision] = {}
        columns: list[str] = []
        for neuron in tree_neurons(tree):
            defined = [child for child in tree.children[neuron] if child in self._leads]
            if neuron not in self._leads or neuron in wanted or len(defined) < 2:
                continue
            goals = tuple(self._goal(child) for child in defined)
            learned = defined if masking else defined + [c for c in tree.children[neuron] if c not in self._leads]
            span = slice(len(columns), len(columns) + len(learned))
            self.decisions[neuron] = Decision(neuron, tuple(learned), goals, span)
            columns += learned
        self.start = self._goal(tree.root)
        above = {name for neuron in self.decisions for name in neurons_above(tree, neuron)}
        self.needed = tuple(name for name in tree_neurons(tree) if name in above or name in self.decisions)
        below = [[c == own or c in tree.ancestors(own) for c in columns] for own in self.concepts]
        inside = [[neuron in tree.ancestors(own) for neuron in self.decisions] for own in self.concepts]
        self.register_buffer("below", _table(below, len(columns)), persistent=False)
        self.register_buffer("inside", _table(inside, len(self.decisions)), persistent=False)
        links = [[a in neurons_above(tree, n) or a == n for a in self.needed] for n in self.decisions]
        self._links: Tensor = _table(links, len(self.needed)).float()
        self._inside: Tensor = self.inside.float()  # stays on the CPU, where it is decided what runs
        self._ancestors_by_depth = self._level_table()

    def _goal(self, concept: str) -> int | str:
        """Down from ``concept`` to the next choice; where there is one child only, nobody has to be asked."""
        while concept not in self._number:
            defined = [child for child in self._tree.children[concept] if child in self._leads]
            if len(defined) > 1:
                return concept
            concept = defined[0]
        return self._number[concept]

    def active(self, present: Tensor) -> tuple[Tensor, Tensor]:
        """Which neurons an image wakes (sec. 3.3): those above the concepts that it shows.

        Args:
            present: (N, K) bool, on the CPU.

        Returns:
            (N, number of ``decisions``) bool, which of them decide, and (N, number of ``needed``), which run.
        """
        decide = (present.float() @ self._inside) > 0
        return decide, (decide.float() @ self._links) > 0

    def _level_table(self) -> Tensor:
        """(depth + 1, K) number of the concept that each label belongs to at each depth; the label's own below it."""
        number = {concept: i for i, concept in enumerate(self._tree.concepts)}
        return torch.tensor([[number[concept] for concept in row] for row in self._tree.by_depth(self.concepts)])

    def levels(self, labels: Tensor) -> Tensor:
        """(H, W) label numbers -> (depth + 1, H, W) int16: at each depth of the tree the number, in ``tree.concepts``,
        of the concept of each pixel, root first. A pixel whose label lies higher keeps its label's concept."""
        return self._ancestors_by_depth.to(labels.device, torch.int16)[:, labels]


def _table(rows: list[list[bool]], width: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool).reshape(len(rows), width)
