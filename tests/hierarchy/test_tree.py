"""Concept trees: order, depths, cuts, what the validator refuses, and the yaml files."""

import itertools

import pytest

from dyn_d2.hierarchy import Hierarchy, HierarchyError, load_hierarchy, save_hierarchy, shipped_hierarchies
from dyn_d2.hierarchy.files import written_out

CHILDREN = {
    "world": ["animal", "plant", "food"],
    "animal": ["cat", "dog"],
    "plant": ["tree", "apple"],
    "food": ["bread", "apple"],
    "dog": ["poodle", "terrier"],
}
LABELS = {
    "pets": {"cat": "cat", "poodle": "poodle", "terrier": "terrier", "tree": "tree"},
    "farm": {"beast": "animal", "apple": "apple", "bread": "bread"},
}
TREE = Hierarchy(CHILDREN, LABELS, name="zoo")


def _ways(children, concept, root):
    """All ways from ``root`` to ``concept``, by plain search."""
    if concept == root:
        return [[root]]
    return [way + [concept] for parent in children if concept in children[parent]
            for way in _ways(children, parent, root)]  # fmt: skip


def test_order_depths_and_relatives():
    assert TREE.root == TREE.concepts[0] == "world"
    assert TREE.neurons == ("world", "animal", "plant", "food", "dog")
    assert TREE.children["cat"] == () and TREE.parents["apple"] == ("plant", "food")
    place = {concept: number for number, concept in enumerate(TREE.concepts)}
    for concept in TREE.concepts:
        ways = _ways(CHILDREN, concept, "world")
        assert TREE.depth(concept) == max(map(len, ways)) - 1
        assert TREE.ancestors(concept) == {name for way in ways for name in way} - {concept}
        assert all(place[parent] < place[concept] for parent in TREE.parents[concept])
        assert list(TREE.path(concept)) in ways
    assert TREE.leaves_under("food") == {"bread", "apple"} and TREE.leaves_under("cat") == {"cat"}
    assert TREE.max_depth == 3


def test_labels_and_cut():
    assert TREE.datasets == ("pets", "farm") and TREE.labels("farm")["beast"] == "animal"
    farm = TREE.cut("farm")
    assert set(farm.concepts) == {"world", "animal", "plant", "food", "apple", "bread"}
    assert farm.datasets == ("farm",) and farm.children["animal"] == ()
    assert TREE.cut("pets", "farm") == TREE != TREE.cut("pets")
    assert set(TREE.cut("pets").concepts) == set(TREE.concepts) - {"food", "bread", "apple"}
    with pytest.raises(HierarchyError, match="no labels of 'city', only of pets, farm"):
        TREE.cut("city")
    with pytest.raises(HierarchyError, match="at least one"):
        TREE.cut()


@pytest.mark.parametrize("order", itertools.permutations(list(CHILDREN)[:3]))
def test_order_in_the_file_does_not_matter(order):
    shuffled = {name: CHILDREN[name] for name in (*order, *CHILDREN)}
    assert Hierarchy(shuffled, LABELS) == TREE


@pytest.mark.parametrize(
    "children, message",
    [
        ({"a": ["b"], "c": ["d"]}, "2 roots, 'a', 'c'"),
        ({"a": ["b"], "b": ["a"]}, "'[ab]' -> '[ab]' -> '[ab]' is a cycle"),
        ({"a": ["b", "c"], "b": ["d"], "d": ["e"], "e": ["b"]}, "'(b|d|e)' -> .* is a cycle"),
        ({"a": ["b"], "b": ["b"]}, "'b' -> 'b' is a cycle"),
        ({"a": ["b", "c", "b"]}, "'a' names its child 'b' twice"),
        ({}, "empty"),
    ],
)
def test_wrong_trees(children, message):
    with pytest.raises(HierarchyError, match=message):
        Hierarchy(children)


@pytest.mark.parametrize(
    "labels, message",
    [
        ({"cow": "cow"}, "label 'cow' of set is on 'cow', which is no concept"),
        ({"cat": "cat", "kitten": "cat"}, "'cat' and 'kitten' of set are both on 'cat'"),
        ({"pet": "animal", "cat": "cat"}, "'pet' of set is on 'animal', above 'cat'"),
    ],
)
def test_wrong_labels(labels, message):
    with pytest.raises(HierarchyError, match=message):
        Hierarchy(CHILDREN, {"set": labels})


def test_labels_must_be_the_classes_of_the_data_set():
    TREE.check_labels("farm", ["bread", "apple", "beast"])
    with pytest.raises(HierarchyError, match="no concept: 'cow'; labels that are no class of the data set: 'bread'"):
        TREE.check_labels("farm", ["cow", "apple", "beast"])
    with pytest.raises(HierarchyError, match="names twice: 'apple'"):
        TREE.check_labels("farm", ["apple", "apple", "beast", "bread"])


def test_the_main_parent_is_that_of_the_file_whatever_its_depth(tmp_path):
    children = {"all": ["deep", "flat"], "deep": ["mid", "x"], "mid": ["shared", "y"], "flat": ["shared", "z"]}
    tree = Hierarchy(children, {"set": {name: name for name in ("shared", "x", "y", "z")}})
    assert tree.parents["shared"] == ("mid", "flat")
    save_hierarchy(tree, tmp_path / "tree.yaml")
    written = load_hierarchy(written_out(tmp_path / "tree.yaml"))
    for other in (load_hierarchy(tmp_path / "tree.yaml"), tree.cut("set"), written):
        assert other.parents == tree.parents and other.concepts == tree.concepts
        assert other.path("shared") == ("all", "deep", "mid", "shared")


def test_unknown_concept():
    for ask in (TREE.depth, TREE.ancestors, TREE.leaves_under, TREE.path):
        with pytest.raises(HierarchyError, match="zoo has no concept 'cow'"):
            ask("cow")


def test_file_round_trip_and_cut_of_another_file(tmp_path):
    save_hierarchy(TREE, tmp_path / "zoo.yaml")
    read = load_hierarchy(tmp_path / "zoo.yaml")
    assert read == TREE and read.parents == TREE.parents and read.concepts == TREE.concepts
    (tmp_path / "farm.yaml").write_text("cut_of: zoo.yaml\ndatasets: [farm]\n")
    assert load_hierarchy(str(tmp_path / "farm.yaml")) == TREE.cut("farm")
    save_hierarchy(Hierarchy({"alone": []}), tmp_path / "one.yaml")
    assert load_hierarchy(tmp_path / "one.yaml").concepts == ("alone",)


@pytest.mark.parametrize(
    "text, message",
    [
        ("concepts: {a: [b]}\ndatasets:\n  d: {x: b, x: a}", "line 3: 'x' is mapped twice"),
        ("concepts: {a: [b], a: [c]}", "'a' is mapped twice"),
        ("concepts: {a: [b]}\ndatasets:\n  d: {x: [a, b]}", "'x' of d is mapped more than once"),
        ("concepts: {a: [b]}\ndatasets:\n  d: {x: }", "'x' of d is not mapped"),
        ("concepts: {a: b}", "children of 'a' are no list"),
        ("concepts: [a]", "'concepts' is no mapping"),
        ("concepts: {a: [b]}\ndatasets: {d: [b]}", "labels of 'd' are no mapping"),
        ("nodes: {a: [b]}", r"the keys \['nodes'\]"),
        ("- a", "no mapping with"),
        ("a: [", "no yaml"),
        ("concepts: {? [a] : [b]}", "line 1: a name was expected"),
        ("concepts: {a: [b]}\ndatasets: {d: {x: {y: b}}}", "'x' of d is not mapped"),
        ("concepts: {a: [b]}\ndatasets: {d: {}}", "labels of 'd' are no mapping"),
        ("cut_of: universal\ndatasets: ade20k", "'datasets' is a list"),
        ("cut_of: [universal]\ndatasets: [ade20k]", "'cut_of' has to name one tree"),
        ("cut_of: tree.yaml\ndatasets: [d]", "is a cut of itself, by way of 'tree.yaml'"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    path = tmp_path / "tree.yaml"
    path.write_text(text)
    with pytest.raises(HierarchyError, match=message):
        load_hierarchy(path)


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "tree.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(HierarchyError, match="no yaml"):
        load_hierarchy(tmp_path / "tree.yaml")


def test_names_that_yaml_would_take_for_something_else(tmp_path):
    path = tmp_path / "tree.yaml"
    path.write_text("concepts: {yes: [no, 5, null]}\ndatasets: {1: {on: no, 2: 5}}")
    tree = load_hierarchy(path)
    assert tree.concepts == ("yes", "no", "5", "null") and tree.labels("1") == {"on": "no", "2": "5"}
    save_hierarchy(tree, path)
    assert load_hierarchy(path) == tree


def test_missing_tree():
    with pytest.raises(FileNotFoundError, match="neither a yaml file nor one of .*cifar100"):
        load_hierarchy("nowhere")
    assert {"cifar100", "digit_scenes"} <= set(shipped_hierarchies())


def test_by_depth_goes_from_the_root_to_the_concepts_themselves():
    concepts = list(TREE.concepts)
    rows = TREE.by_depth(concepts)
    assert len(rows) == 1 + max(len(TREE.path(concept)) - 1 for concept in concepts)
    assert set(rows[0]) == {TREE.root} and rows[-1] == concepts
    for above, below in zip(rows, rows[1:], strict=False):
        assert all(a == b or a in TREE.parents[b] for a, b in zip(above, below, strict=True))
    assert TREE.by_depth([]) == [[]]
