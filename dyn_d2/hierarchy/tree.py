"""A concept tree and the labels of data sets on its concepts.

Liang, Zhou and Xing (CVPR 2018) build a network over such a tree (sec. 3.1), merge several data sets in one (sec. 3.4),
and ask for concepts with several parents (sec. 4.5); "tree" is therefore used for any directed acyclic graph with one
root.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

Children = Mapping[str, Sequence[str]]
Labels = Mapping[str, Mapping[str, str]]


class HierarchyError(ValueError):
    """A tree is not valid, or does not fit a data set; the message names the concept or label and the remedy."""


class Hierarchy:
    """An immutable, valid concept tree.

    Attributes:
        name: for messages.
        root: the concept above all others.
        concepts: all names, root first, by depth, parents before children.
        children, parents: concept -> names, empty tuples where there are none. The first parent is the main one.
        neurons: the concepts that have children, in the order of ``concepts``.
        datasets: names of the data sets that have labels on the tree.
    """

    def __init__(self, children: Children, labels: Labels | None = None, name: str = "tree") -> None:
        """
        Args:
            children: concept -> names of its children, in any order. Concepts that are only children are leaves.
            labels: data set -> label -> concept. A label may stand on an inner concept (a coarse label), but in no
                data set above another label of the same set, and no two labels of a set on the same concept: nothing
                could tell them apart.

        Raises:
            HierarchyError: the tree has a cycle, no or several roots, a child twice; a label is on an unknown concept
                or above or on that of another one.
        """
        self.name = name
        self.children = _complete(children, name)
        self.parents = _parents(self.children)
        self.root = _root(self.parents, name)
        self._depth = _depths(self.children, self.parents, name)
        place = {concept: number for number, concept in enumerate(self.children)}
        self.concepts = tuple(sorted(self.children, key=lambda concept: (self._depth[concept], place[concept])))
        self.neurons = tuple(concept for concept in self.concepts if self.children[concept])
        self._labels = {dataset: dict(mapping) for dataset, mapping in (labels or {}).items()}
        self.datasets = tuple(self._labels)
        for dataset, mapping in self._labels.items():
            self._check_labels(dataset, mapping)

    def __repr__(self) -> str:
        return (
            f"Hierarchy({self.name!r}: {len(self.concepts)} concepts, {len(self.neurons)} with children, "
            f"depth {self.max_depth}, labels of {', '.join(self.datasets) or 'no data set'})"
        )

    def __eq__(self, other: object) -> bool:
        """Same concepts and labels; order and name do not count. Nobody needs a hash, so there is none."""
        if not isinstance(other, Hierarchy):
            return NotImplemented
        return self._labels == other._labels and self._edges() == other._edges()

    def _edges(self) -> dict[str, frozenset[str]]:
        return {concept: frozenset(below) for concept, below in self.children.items()}

    @property
    def max_depth(self) -> int:
        """Of the deepest concept; the root alone has 0."""
        return max(self._depth.values())

    @cached_property
    def leaves(self) -> tuple[str, ...]:
        """The concepts without children, in the order of ``concepts``."""
        return tuple(concept for concept in self.concepts if not self.children[concept])

    def depth(self, concept: str) -> int:
        """Steps from the root (0), along the longest way where there are several."""
        return self._depth[self._known(concept)]

    def ancestors(self, concept: str) -> frozenset[str]:
        """All concepts above, along every parent, without the concept itself."""
        return self._ancestors[self._known(concept)]

    @cached_property
    def _ancestors(self) -> dict[str, frozenset[str]]:
        found: dict[str, frozenset[str]] = {}
        for concept in self.concepts:
            found[concept] = frozenset(self.parents[concept]).union(*(found[p] for p in self.parents[concept]))
        return found

    def leaves_under(self, concept: str) -> frozenset[str]:
        """The leaves below; a leaf itself for a leaf."""
        self._known(concept)
        return frozenset(leaf for leaf in self.leaves if leaf == concept or concept in self._ancestors[leaf])

    def path(self, concept: str) -> tuple[str, ...]:
        """From the root to the concept, both included, along the first (main) parents."""
        self._known(concept)
        way = [concept]
        while self.parents[way[-1]]:
            way.append(self.parents[way[-1]][0])
        return tuple(reversed(way))

    def by_depth(self, concepts: Sequence[str]) -> list[list[str]]:
        """For each depth, from the root to the deepest of ``concepts`` (K), the K concepts on their main paths there;
        one that lies higher stands for itself."""
        paths = [self.path(concept) for concept in concepts]
        return [
            [path[min(depth, len(path) - 1)] for path in paths]
            for depth in range(max((len(path) for path in paths), default=1))
        ]

    def labels(self, dataset: str) -> dict[str, str]:
        """Label -> concept of one data set, in the data set's order of classes.

        Raises:
            HierarchyError: the tree has no labels of this data set.
        """
        if dataset not in self._labels:
            raise HierarchyError(
                f"{self.name} has no labels of {dataset!r}, only of {', '.join(self.datasets) or 'no data set'}: "
                "add them below 'datasets' in its yaml file."
            )
        return dict(self._labels[dataset])

    def cut(self, *datasets: str) -> "Hierarchy":
        """The concepts on the ways from the root to the labels of these data sets, and only these sets' labels.

        Concepts that are left with one child stay: names and depths are those of the whole tree.

        Raises:
            HierarchyError: no data set is named, or one that has no labels here.
        """
        if not datasets:
            raise HierarchyError(f"{self.name}: name at least one data set to cut the tree to.")
        labels = {dataset: self.labels(dataset) for dataset in datasets}
        targets = {concept for mapping in labels.values() for concept in mapping.values()}
        kept = targets.union(*(self._ancestors[concept] for concept in targets))
        # In the order of ``children``, not by depth as ``concepts``: it says which parent is the main one.
        children = {c: [child for child in below if child in kept] for c, below in self.children.items() if c in kept}
        return Hierarchy(children, labels, name=f"{self.name} cut to {' + '.join(datasets)}")

    def check_labels(self, dataset: str, names: Sequence[str]) -> None:
        """That the labels of ``dataset`` are exactly ``names``, the classes of the data set.

        Raises:
            HierarchyError: lists the classes without a concept, the labels that are no class, and classes named twice.
        """
        labels = self.labels(dataset)
        twice = sorted({name for name in names if list(names).count(name) > 1})
        missing = [name for name in names if name not in labels]
        extra = [label for label in labels if label not in set(names)]
        problems = [
            f"{text} {', '.join(map(repr, found))}"
            for text, found in (
                ("classes that have no concept:", missing),
                ("labels that are no class of the data set:", extra),
                ("classes that the data set names twice:", twice),
            )
            if found
        ]
        if problems:
            raise HierarchyError(
                f"{self.name} does not fit {dataset!r}: {'; '.join(problems)}. Correct datasets/{dataset} in its yaml."
            )

    def as_dict(self) -> dict[str, Any]:
        """The content of the yaml file: {"concepts": ..., "datasets": ...}, plain dicts and lists."""
        # In the order of ``children``, not by depth as ``neurons``: it says which parent is the main one.
        concepts = {concept: list(below) for concept, below in self.children.items() if below}
        return {"concepts": concepts or {self.root: []}, "datasets": {d: self.labels(d) for d in self.datasets}}

    def _known(self, concept: str) -> str:
        if concept not in self.children:
            raise HierarchyError(f"{self.name} has no concept {concept!r}.")
        return concept

    def _check_labels(self, dataset: str, mapping: Mapping[str, str]) -> None:
        where: dict[str, str] = {}
        for label, concept in mapping.items():
            if concept not in self.children:
                raise HierarchyError(
                    f"{self.name}: label {label!r} of {dataset} is on {concept!r}, which is no concept of the tree."
                )
            if concept in where:
                raise HierarchyError(
                    f"{self.name}: labels {where[concept]!r} and {label!r} of {dataset} are both on {concept!r}; give "
                    "each a concept of its own."
                )
            where[concept] = label
        for label, concept in mapping.items():
            for above in self._ancestors[concept] & where.keys():
                raise HierarchyError(
                    f"{self.name}: label {where[above]!r} of {dataset} is on {above!r}, above {concept!r} with label "
                    f"{label!r} of the same data set: put {where[above]!r} on a child of {above!r} of its own."
                )


def _complete(children: Children, name: str) -> dict[str, tuple[str, ...]]:
    """With the leaves as keys too; HierarchyError for a child named twice."""
    complete: dict[str, tuple[str, ...]] = {}
    for concept, below in children.items():
        twice = sorted({child for child in below if list(below).count(child) > 1})
        if twice:
            raise HierarchyError(f"{name}: {concept!r} names its child {twice[0]!r} twice.")
        complete[concept] = tuple(below)
    for below in children.values():
        for child in below:
            complete.setdefault(child, ())
    return complete


def _parents(children: Children) -> dict[str, tuple[str, ...]]:
    parents: dict[str, list[str]] = {concept: [] for concept in children}
    for concept, below in children.items():
        for child in below:
            parents[child].append(concept)
    return {concept: tuple(above) for concept, above in parents.items()}


def _root(parents: Mapping[str, Sequence[str]], name: str) -> str:
    roots = [concept for concept, above in parents.items() if not above]
    if len(roots) > 1:
        raise HierarchyError(
            f"{name} has {len(roots)} roots, {', '.join(map(repr, roots))}: make all but one a child of some concept."
        )
    if not roots:
        cycle = _find_cycle(parents)
        reason = f"{_as_circle(cycle)} is a cycle" if cycle else "it is empty"
        raise HierarchyError(f"{name} has no root: {reason}.")
    return roots[0]


def _depths(children: Children, parents: Mapping[str, Sequence[str]], name: str) -> dict[str, int]:
    """Longest way from the root; HierarchyError if a cycle hides some concepts."""
    waiting = {concept: len(above) for concept, above in parents.items()}
    ready = [concept for concept, count in waiting.items() if not count]
    depth = dict.fromkeys(ready, 0)
    for concept in ready:  # grows on the way
        for child in children[concept]:
            depth[child] = max(depth.get(child, 0), depth[concept] + 1)
            waiting[child] -= 1
            if not waiting[child]:
                ready.append(child)
    if len(ready) < len(children):
        stuck = {concept: [p for p in parents[concept] if waiting[p]] for concept in children if waiting[concept]}
        raise HierarchyError(f"{name}: {_as_circle(_find_cycle(stuck))} is a cycle; take one of these links out.")
    return depth


def _find_cycle(parents: Mapping[str, Sequence[str]]) -> list[str]:
    """Concepts of a cycle, parents first, where every concept has a parent; empty for no concepts."""
    if not parents:
        return []
    way = [next(iter(parents))]
    while way[-1] not in way[:-1]:
        way.append(parents[way[-1]][0])
    return way[way.index(way[-1]) + 1 :][::-1]


def _as_circle(cycle: Iterable[str]) -> str:
    names = list(cycle)
    return " -> ".join(map(repr, [*names, names[0]]))
