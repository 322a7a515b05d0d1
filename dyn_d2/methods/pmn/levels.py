"""The knowledge levels of PMN (Liang, CVPR 2019): which of them a module may take, and what taking them weighs.

A level is a concept with at least two children. Concepts with one child decide nothing: they are passed over, so that a
way through them counts as one step. Shape shorthand: N images, M levels, K classes, I concepts above the classes.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from dyn_d2.hierarchy import load_hierarchy


class KnowledgeLevels:
    """The levels of a concept tree, seen from the classes of one data set.

    Attributes:
        names: of the M levels, parents before children.
        labels: names of the K classes; empty where nobody named them.
        start: bool (M,), what the first module may take.
        reach: bool (M, M), ``reach[i, j]``: level j lies within the hops below level i.
        children: bool (M, K), the classes that are children of a level; None: all are, of the one level.
        inner_children: bool (M, I), the other concepts that are.
        above: bool (I, K), which of these, all but the root, are above a class.
    """

    def __init__(
        self,
        names: Sequence[str],
        labels: Sequence[str],
        start: Tensor,
        reach: Tensor,
        children: Tensor | None,
        inner_children: Tensor | None = None,
        above: Tensor | None = None,
    ) -> None:
        self.names, self.labels = tuple(names), tuple(labels)
        self.start, self.reach, self.children = start, reach, children
        self.inner_children = torch.zeros(len(names), 0, dtype=torch.bool) if inner_children is None else inner_children
        self.above = torch.zeros(0, len(labels), dtype=torch.bool) if above is None else above

    @classmethod
    def flat(cls) -> "KnowledgeLevels":
        """One level above all classes: what is left without a concept tree."""
        return cls(("all classes",), (), torch.ones(1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool), None)

    @classmethod
    def of_tree(cls, tree, dataset: str, hops: int = 2) -> "KnowledgeLevels":
        """
        Args:
            tree: a :class:`dyn_d2.hierarchy.Hierarchy`; it is cut to the labels of the data set.
            dataset: whose labels are the classes.
            hops: how many steps down the graph search looks: 2 in the paper, 1 for its ablation.

        Raises:
            ValueError: ``hops`` is not positive, or the tree has no concept with two children.
        """
        if hops < 1:
            raise ValueError(f"MODEL.POLICY.PMN.HOPS is {hops}: the graph search looks at least 1 step down.")
        tree = tree.cut(dataset)
        labels = tree.labels(dataset)
        names = [concept for concept in tree.concepts if len(tree.children[concept]) > 1]
        if not names:
            raise ValueError(f"the concept tree of {dataset} has no concept with two children: there is no level.")
        place = {name: i for i, name in enumerate(names)}
        below = {name: _below(tree, name) for name in names}
        step = {name: [concept for concept in below[name] if concept in place] for name in names}
        reach = torch.zeros(len(names), len(names), dtype=torch.bool)
        for name in names:
            for found in _within(step, [name], hops):
                reach[place[name], place[found]] = True
        root = tree.concepts[0]
        top = [root] if root in place else [concept for concept in _below(tree, root) if concept in place]
        start = torch.zeros(len(names), dtype=torch.bool)
        start[[place[name] for name in [*top, *_within(step, top, hops)]]] = True
        children = torch.tensor([[concept in below[name] for concept in labels.values()] for name in names])
        inner = [concept for concept in tree.concepts[1:] if concept not in labels.values()]
        inner_children = torch.tensor([[concept in below[name] for concept in inner] for name in names])
        above = [[concept in tree.ancestors(label) for label in labels.values()] for concept in inner]
        above_each = torch.tensor(above, dtype=torch.bool).view(len(inner), len(labels))
        return cls(names, list(labels), start, reach, children, inner_children.bool(), above_each)

    def __len__(self) -> int:
        return len(self.names)

    def concepts_of(self, num_classes: int, names: Sequence[str] = ()) -> tuple[Tensor, Tensor]:
        """For a head that predicts the K classes and then the I concepts above them: bool (M, K + I), which of these
        are children of a level, and ``above``; arguments and errors as of ``children_of``."""
        children = self.children_of(num_classes, names)
        columns = [self.labels.index(name) for name in names] if names and len(self.labels) else slice(None)
        above = self.above[:, columns] if self.labels else torch.zeros(0, num_classes, dtype=torch.bool)
        return torch.cat([children, self.inner_children], 1), above

    def children_of(self, num_classes: int, names: Sequence[str] = ()) -> Tensor:
        """``children`` for a head with that many classes.

        Args:
            names: of the classes, in the order of the head; empty where they are not known.

        Raises:
            ValueError: the labels of the tree are others.
        """
        if self.children is None:
            return torch.ones(len(self), num_classes, dtype=torch.bool)
        if names and set(names) != set(self.labels):
            differ = sorted(set(names) ^ set(self.labels))
            raise ValueError(
                f"the labels of the concept tree and the classes of the data set differ in {', '.join(differ[:10])}: "
                "choose MODEL.POLICY.PMN.TREE and LABELS for the data set that is trained on."
            )
        if names:
            return self.children[:, [self.labels.index(name) for name in names]]
        if self.children.shape[1] != num_classes:
            raise ValueError(
                f"the concept tree has {self.children.shape[1]} classes, the head predicts {num_classes}: "
                "MODEL.POLICY.PMN.LABELS has to name the labels of the data set that is trained on."
            )
        return self.children


def _below(tree, concept: str) -> list[str]:
    """Children of a concept, and what follows those that have one child only."""
    found = []
    waiting = list(tree.children[concept])
    while waiting:
        child = waiting.pop(0)
        if child not in found:
            found.append(child)
            waiting += tree.children[child] if len(tree.children[child]) == 1 else ()
    return found


def _within(step: dict[str, list[str]], begin: Iterable[str], hops: int) -> list[str]:
    """What can be reached from ``begin`` in 1 to ``hops`` steps."""
    found: list[str] = []
    edge = list(begin)
    for _ in range(hops):
        edge = [other for name in edge for other in step[name]]
        found += edge
    return list(dict.fromkeys(found))


def action_space(taken: Tensor, start: Tensor, reach: Tensor, overlap: bool = True) -> Tensor:
    """Omega_k, the graph search of Eq. 3: the levels that earlier modules took, and what lies within the hops below.

    Args:
        taken: bool (N, M), Omega'_k, the levels that any earlier module took.
        start: bool (M,), for images of which no module has taken any.
        reach: bool (M, M), see :class:`KnowledgeLevels`.
        overlap: whether levels may be taken again; False is the ablation "w/o overlap".

    Returns:
        bool (N, M).
    """
    fresh = (taken.to(torch.float32) @ reach.to(torch.float32)) > 0
    space = fresh | taken if overlap else fresh & ~taken
    return torch.where(taken.any(1, keepdim=True), space, start)


def class_weights(levels: Tensor, children: Tensor, off_level: float) -> Tensor:
    """beta(a_k) of Eq. 6: 1 for classes that are children of a level that was taken, ``off_level`` for the others.

    Args:
        levels: bool (N, M), a_k.
        children: bool (M, K).

    Returns:
        float32 (N, K).
    """
    under = (levels.to(torch.float32) @ children.to(torch.float32)) > 0
    return torch.where(under, 1.0, off_level)


def add_weighted(total: Tensor | None, scores: Tensor, rows: Tensor, weights: Tensor, images: int) -> Tensor:
    """One term of the sum of Eq. 6: ``total`` plus beta(a_k) * y_k for the images that took levels at this module.

    Args:
        total: (N, K, ...) so far; None for zeros.
        scores: (n, K, ...), y_k of those images.
        rows: int64 (n,), which images they are.
        weights: (n, K).
        images: N.
    """
    if total is None:
        total = scores.new_zeros(images, *scores.shape[1:])
    weights = weights.to(scores.dtype).reshape(*weights.shape, *[1] * (scores.dim() - 2))
    return total.index_add(0, rows, weights * scores)


def average(total: Tensor, counts: Tensor) -> Tensor:
    """Eq. 6: ``total`` (N, K, ...) divided by |a'|, the (N,) numbers of modules that predict for each image."""
    return total / counts.to(total.dtype).reshape(-1, *[1] * (total.dim() - 1))


def build_levels(cfg) -> KnowledgeLevels:
    """The knowledge levels of MODEL.POLICY.PMN.{TREE, LABELS, HOPS}; one level where there is no tree, or where the
    ablation uses none."""
    pmn = cfg.MODEL.POLICY.PMN
    if not pmn.TREE or pmn.ACTIONS != "levels":
        return KnowledgeLevels.flat()
    tree = load_hierarchy(pmn.TREE)
    return KnowledgeLevels.of_tree(tree, pmn.LABELS or pmn.TREE, pmn.HOPS)
