"""Paths through a tree of layers: probabilities, choices and costs to go, against recursion image by image."""

import math

import pytest
import torch

from dyn_d2.methods.multipath.paths import (
    EXIT,
    FLOOR,
    PathTree,
    costs_to_go,
    greedy_paths,
    path_probabilities,
    throughput_rate,
)

TREES = {
    "chain": PathTree.chain(4),
    "tree": PathTree.branching(4, 2),
    "static": PathTree.static(3),
    "one": PathTree.chain(1),
}
IMAGES = 5


def _scores(tree: PathTree, images: int = IMAGES) -> dict[int, torch.Tensor]:
    return {layer: torch.randn(images, len(tree.sinks(layer)), dtype=torch.float64) for layer in tree.junctions}


def _soft_max(values: list[float]) -> list[float]:
    return [math.exp(v) / sum(map(math.exp, values)) for v in values]


def _leaves(tree: PathTree, sink: int) -> int:
    return 1 if sink == EXIT else sum(_leaves(tree, s) for s in tree.sinks(sink))


def _slow_probabilities(tree, scores, tau, floor, image) -> dict[tuple[str, int], float]:
    found = {}

    def walk(layer: int, p: float) -> None:
        found["layer", layer] = p
        sinks = tree.sinks(layer)
        share = [1.0]
        if len(sinks) > 1:
            own = floor * _leaves(tree, layer) / _leaves(tree, 0)
            soft = _soft_max([r / tau for r in scores[layer][image].tolist()])
            below = [floor * _leaves(tree, s) / _leaves(tree, 0) for s in sinks]
            share = [(1 - own / p) * q + least / p for q, least in zip(soft, below, strict=True)]
        for sink, part in zip(sinks, share, strict=True):
            if sink == EXIT:
                found["exit", layer] = p * part
            else:
                walk(sink, p * part)

    walk(0, 1.0)
    return found


def test_topologies():
    assert [PathTree.chain(3).sinks(i) for i in range(3)] == [(EXIT, 1), (EXIT, 2), (EXIT,)]
    assert [PathTree.static(3).sinks(i) for i in range(3)] == [(1,), (2,), (EXIT,)]
    tree = PathTree.branching(8, 3)
    assert [tree.levels.count(level) for level in range(8)] == [1, 2, 4, 8, 8, 8, 8, 8]
    assert tree.sinks(0) == (EXIT, 1, 2) and tree.leaves[0] == len(tree) and len(tree.deepest) == 8
    assert all(layer < child for layer, children in enumerate(tree.children) for child in children)
    assert PathTree.chain(8).junctions == list(range(7)) and not PathTree.static(8).junctions


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize(("tau", "floor"), [(1.0, FLOOR), (0.3, 0.05)])
def test_probabilities(name, tau, floor):
    tree = TREES[name]
    scores = _scores(tree)
    found = path_probabilities(tree, scores, tau, torch.zeros(IMAGES), floor)
    for image in range(IMAGES):
        slow = _slow_probabilities(tree, scores, tau, floor, image)
        for layer, p in enumerate(found.layers):
            assert float(p[image]) == pytest.approx(slow["layer", layer], rel=1e-5)
        for layer, p in found.exits.items():
            assert float(p[image]) == pytest.approx(slow["exit", layer], rel=1e-5)
    assert torch.stack(list(found.exits.values())).sum(0).tolist() == pytest.approx([1.0] * IMAGES)


def test_every_exit_keeps_its_floor():
    tree = TREES["chain"]
    scores = {layer: torch.tensor([[50.0, -50.0]]) for layer in tree.junctions}
    found = path_probabilities(tree, scores, 0.01, torch.zeros(1), 0.01)
    assert all(float(p) >= 0.01 / 4 - 1e-6 for p in found.exits.values())


@pytest.mark.parametrize("name", TREES)
def test_greedy_paths_follow_the_greatest_score(name):
    tree = TREES[name]
    scores = _scores(tree)
    found = greedy_paths(tree, scores, torch.zeros(IMAGES))
    for image in range(IMAGES):
        layer, visited = 0, [0]
        while True:
            sinks = tree.sinks(layer)
            sink = sinks[int(scores[layer][image].argmax())] if len(sinks) > 1 else sinks[0]
            if sink == EXIT:
                break
            layer = sink
            visited.append(layer)
        assert [i for i, p in enumerate(found.layers) if p[image] == 1] == visited
        assert [i for i, p in found.exits.items() if p[image] == 1] == [layer]


def test_equal_scores_take_the_exit():
    """As at the start of training, when routers give zeros."""
    tree = TREES["chain"]
    zeros = {layer: torch.zeros(2, 2) for layer in tree.junctions}
    assert greedy_paths(tree, zeros, torch.zeros(2)).exits[0].tolist() == [1, 1]


@pytest.mark.parametrize("optimistic", [False, True])
@pytest.mark.parametrize("name", TREES)
def test_costs_to_go(name, optimistic):
    tree = TREES[name]
    scores = _scores(tree)
    ends = {layer: torch.rand(IMAGES) for layer in range(len(tree)) if tree.exits[layer]}
    layers = torch.rand(len(tree)).tolist()
    found = costs_to_go(tree, scores, ends, layers, optimistic)
    assert list(found) == tree.junctions[::-1]

    def slow(sink: int, layer: int, image: int) -> float:
        if sink == EXIT:
            return float(ends[layer][image])
        each = [slow(s, sink, image) for s in tree.sinks(sink)]
        if len(each) == 1:
            return layers[sink] + each[0]
        return layers[sink] + (min(each) if optimistic else each[int(scores[sink][image].argmax())])

    for layer, costs in found.items():
        for image in range(IMAGES):
            expected = [slow(sink, layer, image) for sink in tree.sinks(layer)]
            assert costs[image].tolist() == pytest.approx(expected)


def test_optimists_expect_less():
    tree = TREES["tree"]
    scores = _scores(tree)
    ends = {layer: torch.rand(IMAGES) for layer in range(len(tree))}
    low, high = (costs_to_go(tree, scores, ends, [0.1] * len(tree), optimistic) for optimistic in (True, False))
    assert all((low[layer] <= high[layer] + 1e-6).all() for layer in low)


def test_rate_of_a_rare_layer_is_greater():
    p = torch.tensor([0.1, 0.2, 0.3])
    assert float(throughput_rate(p)) == pytest.approx(1 / math.sqrt((0.01 + 0.04 + 0.09) / 3))
    assert float(throughput_rate(torch.ones(4))) == 1
    assert torch.isfinite(throughput_rate(torch.zeros(4)))
