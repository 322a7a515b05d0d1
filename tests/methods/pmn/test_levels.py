"""Knowledge levels: graph search, weights and average of PMN against loops over names and numbers."""

import pytest
import torch

from dyn_d2.hierarchy import Hierarchy
from dyn_d2.methods.pmn.levels import KnowledgeLevels, action_space, add_weighted, average, class_weights

# "living" has one child only, so that "animal" is one step below "thing"; "bat" stands below two levels.
CHILDREN = {
    "thing": ["living", "tool", "sky"],
    "living": ["animal"],
    "animal": ["mammal", "bird"],
    "mammal": ["cat", "dog", "bat"],
    "bird": ["crow", "owl", "bat"],
    "tool": ["saw", "box"],
    "box": ["crate"],
}
CLASSES = ["owl", "cat", "dog", "bat", "crow", "saw", "crate", "sky"]
LEVELS = ["thing", "tool", "animal", "mammal", "bird"]


def tree() -> Hierarchy:
    return Hierarchy(CHILDREN, {"pets": {name: name for name in CLASSES}, "two": {"a": "cat", "b": "dog"}})


def slow_below(name: str) -> set[str]:
    """What a level or class is a child of ``name``: one-child concepts lead on."""
    found = set()
    for child in CHILDREN.get(name, []):
        found.add(child)
        if len(CHILDREN.get(child, [])) == 1:
            found |= slow_below(child)
    return found


def slow_reach(name: str, hops: int) -> set[str]:
    step = slow_below(name) & set(LEVELS)
    return step if hops == 1 else step.union(*(slow_reach(other, hops - 1) for other in step))


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_levels_are_concepts_with_two_children_and_steps_pass_over_the_others(hops):
    levels = KnowledgeLevels.of_tree(tree(), "pets", hops)
    assert set(levels.names) == set(LEVELS) and levels.names[0] == "thing" and list(levels.labels) == CLASSES
    for i, name in enumerate(levels.names):
        reached = {levels.names[j] for j in levels.reach[i].nonzero()[:, 0]}
        assert reached == slow_reach(name, hops)
        below = {CLASSES[k] for k in levels.children[i].nonzero()[:, 0]}
        assert below == slow_below(name) & set(CLASSES)
    begin = {levels.names[j] for j in levels.start.nonzero()[:, 0]}
    assert begin == {"thing"} | slow_reach("thing", hops)


def test_the_tree_is_cut_to_the_data_set():
    levels = KnowledgeLevels.of_tree(tree(), "two")
    assert levels.names == ("mammal",) and levels.start.tolist() == [True]
    assert levels.children.tolist() == [[True, True]]


def test_columns_follow_the_names_of_the_data_set():
    levels = KnowledgeLevels.of_tree(tree(), "pets")
    assert torch.equal(levels.children_of(8, CLASSES[::-1]), levels.children.flip(1))
    assert torch.equal(levels.children_of(8), levels.children)
    with pytest.raises(ValueError, match="differ in owl, pig"):
        levels.children_of(8, ["pig", *CLASSES[1:]])
    with pytest.raises(ValueError, match="8 classes, the head predicts 5"):
        levels.children_of(5)
    assert KnowledgeLevels.flat().children_of(3).tolist() == [[True] * 3]
    with pytest.raises(ValueError, match="HOPS is 0"):
        KnowledgeLevels.of_tree(tree(), "pets", 0)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("hops", [1, 2])
def test_action_space_is_what_was_taken_and_what_lies_below(hops, overlap):
    levels = KnowledgeLevels.of_tree(tree(), "pets", hops)
    taken = torch.rand(40, len(levels)) < 0.3
    taken[0] = False
    space = action_space(taken, levels.start, levels.reach, overlap)
    for row, allowed in zip(taken, space, strict=True):
        history = {levels.names[j] for j in row.nonzero()[:, 0]}
        fresh = set().union(*(slow_reach(name, hops) for name in history))
        if not history:
            expected = {"thing"} | slow_reach("thing", hops)
        else:
            expected = fresh | history if overlap else fresh - history
        assert {levels.names[j] for j in allowed.nonzero()[:, 0]} == expected


def test_weighted_average_is_equation_6():
    levels, images, modules = KnowledgeLevels.of_tree(tree(), "pets"), 5, 4
    taken = torch.rand(modules, images, len(levels)) < 0.4
    taken[0] = True  # every image has a module that predicts
    scores = torch.randn(modules, images, 8, 2, 3, dtype=torch.float64)
    total, counts = None, torch.zeros(images, dtype=torch.int64)
    for chosen, module in zip(taken, scores, strict=True):
        rows = chosen.any(1).nonzero()[:, 0]
        weights = class_weights(chosen[rows], levels.children, 0.8)
        total = add_weighted(total, module[rows], rows, weights, images)
        counts[rows] += 1
    found = average(total, counts)
    for n in range(images):
        expected = torch.zeros(8, 2, 3, dtype=torch.float64)
        active = [k for k in range(modules) if taken[k, n].any()]
        for k in active:
            for c, label in enumerate(CLASSES):
                under = any(label in slow_below(levels.names[j]) for j in taken[k, n].nonzero()[:, 0])
                expected[c] += (1.0 if under else 0.8) * scores[k, n, c]
        torch.testing.assert_close(found[n], expected / len(active), rtol=1e-6, atol=1e-6)


def test_adding_keeps_the_gradient_and_takes_no_images():
    scores = torch.randn(2, 3, requires_grad=True)
    total = add_weighted(None, scores, torch.tensor([2, 0]), torch.full((2, 3), 0.5), 4)
    total = add_weighted(total, scores[:0], torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3), 4)
    total.sum().backward()
    assert torch.equal(scores.grad, torch.full((2, 3), 0.5)) and not total[[1, 3]].any()


def test_concepts_above_the_classes():
    pets = tree().cut("pets")
    levels = KnowledgeLevels.of_tree(tree(), "pets")
    names = CLASSES[::-1]  # the order of a head
    children, above = levels.concepts_of(len(names), names)
    inner = [concept for concept in pets.concepts[1:] if concept not in CLASSES]
    assert set(inner) == {"living", "animal", "mammal", "bird", "tool", "box"} and len(above) == len(inner)
    for i, concept in enumerate(inner):
        assert {names[k] for k in above[i].nonzero()[:, 0]} == set(CLASSES) & slow_under(concept)
    for m, level in enumerate(levels.names):
        found = {(*names, *inner)[k] for k in children[m].nonzero()[:, 0]}
        assert found == slow_below(level) & {*names, *inner}
    assert KnowledgeLevels.flat().concepts_of(5, list("abcde"))[1].shape == (0, 5)


def slow_under(name: str) -> set[str]:
    return {name}.union(*(slow_under(child) for child in CHILDREN.get(name, [])))
