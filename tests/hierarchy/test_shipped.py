"""The trees that dyn_d2 ships, against the data sets that they are for."""

import re

import pytest
import yaml

from dyn_d2.data.classification import names
from dyn_d2.data.digit_scenes import SEMANTIC_CLASSES
from dyn_d2.data.semantic import PUBLISHED
from dyn_d2.hierarchy import files, load_hierarchy, shipped_hierarchies

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import builtin_meta

COUNTS = {"coco_stuff": 182, "ade20k": 150, "cityscapes": 19, "mapillary": 65, "pascal_context": 59}
COUNTS["coco_panoptic"] = 133
PAPERS_SETS = ("coco_stuff", "ade20k", "cityscapes", "mapillary")
# COCO-Stuff's ids of things without any annotation.
NEVER = "street sign;hat;shoe;eye glasses;plate;mirror;window;desk;door;blender;hair brush".split(";")


def test_names():
    others = {"universal", "cifar10", "cifar100", "digits", "digit_scenes", "street", "voc_2012"}
    assert set(shipped_hierarchies()) == {*COUNTS, *others}


def test_digit_scenes():
    tree = load_hierarchy("digit_scenes")
    assert list(tree.labels("digit_scenes")) == list(SEMANTIC_CLASSES)


def test_cifar100():
    tree = load_hierarchy("cifar100")
    assert len(tree.concepts) == 148  # as many as in PMN, sec. 4.2
    assert list(tree.labels("cifar100")) == list(names.CIFAR100)
    assert list(tree.labels("cifar100_superclasses")) == list(names.CIFAR100_SUPERCLASSES)
    assert set(tree.leaves) == set(names.CIFAR100)
    for name, classes in names.CIFAR100_TREE.items():
        assert tree.leaves_under(name) == set(classes.split())


def test_universal_tree_has_the_shape_of_the_papers():
    tree = load_hierarchy("universal")
    assert {name: len(tree.labels(name)) for name in tree.datasets} == COUNTS
    papers = tree.cut(*PAPERS_SETS)
    assert len(papers.concepts) == 354  # of "359 concepts" (DSSPN sec. 4.1), whose tree is not published
    assert set(tree.concepts) - set(papers.concepts) == {"bedclothes"}  # Pascal-Context's own
    assert tree.max_depth == 3
    assert len(tree.children["entity"]) == 27  # COCO-Stuff's super-classes, told apart at the root as in Fig. 2
    assert (len(tree.neurons), len(tree.cut("coco_stuff").neurons)) == (56, 41)
    assert [len(tree.children[name]) for name in tree.neurons if len(tree.children[name]) < 2] == []
    labelled = {concept for name in tree.datasets for concept in tree.labels(name).values()}
    assert set(tree.leaves) <= labelled  # nothing is there for its own sake
    assert all(len(tree.parents[name]) == 1 for name in tree.concepts[1:])


@pytest.mark.parametrize("name", COUNTS)
def test_own_trees_are_cuts(name):
    assert load_hierarchy(name) == load_hierarchy("universal").cut(name)
    assert load_hierarchy(name).name == name


def test_things_and_stuff_of_coco_stuff_are_where_they_belong():
    tree = load_hierarchy("coco_stuff")
    above = [[*tree.path(concept)][1] for concept in tree.labels("coco_stuff").values()]
    assert all(name.endswith("-things") or name == "person" for name in above[:91])
    assert all(name.endswith("-stuff") for name in above[91:])


def test_names_are_those_of_coco():
    """The 80 annotated things of COCO-Stuff, and the classes of the panoptic set."""
    tree = load_hierarchy("universal")
    things = MetadataCatalog.get("coco_2017_val").thing_classes
    stuff = list(tree.labels("coco_stuff"))
    assert [name for name in stuff[:91] if name not in NEVER] == things and len(NEVER) == 11
    separated = builtin_meta._get_builtin_metadata("coco_panoptic_separated")
    known = [*separated["thing_classes"], *separated["stuff_classes"][1:]]  # the first one is "things"
    short = [re.sub("-(other|merged)", "", name) for name in tree.labels("coco_panoptic")]  # as Detectron2 does
    assert short == known


def test_names_are_those_of_cityscapes():
    metadata = MetadataCatalog.get("cityscapes_fine_sem_seg_val")
    assert list(load_hierarchy("universal").labels("cityscapes")) == list(metadata.stuff_classes)
    assert (metadata.hierarchy, metadata.label_set) == ("universal", "cityscapes")


def test_names_are_those_of_the_real_detectron2():
    ade20k, coco = (getattr(builtin_meta, f"{name}_CATEGORIES", None) for name in ("ADE20K_SEM_SEG", "COCO"))
    if ade20k is None or coco is None:
        pytest.skip("only the real Detectron2 has these names")
    tree = load_hierarchy("universal")
    assert list(tree.labels("ade20k")) == [name.strip() for name in ade20k]
    assert list(tree.labels("coco_panoptic")) == [category["name"] for category in coco]


def test_registered_classes_are_the_labels():
    for name, data in PUBLISHED.items():
        for split in data.splits:
            metadata = MetadataCatalog.get(f"{name}_{split}")
            tree = load_hierarchy(data.tree)
            assert (metadata.hierarchy, metadata.stuff_classes) == (tree.name, list(tree.labels(data.label_set)))


def test_files_hold_lines_that_a_person_can_read():
    for path in files._SHIPPED.glob("*.yaml"):
        text = path.read_text()
        assert max(map(len, text.splitlines())) <= 125 and yaml.safe_load(text)


def test_cifar10_and_digits():
    assert list(load_hierarchy("cifar10").labels("cifar10")) == list(names.CIFAR10)
    assert list(load_hierarchy("digits").labels("digits")) == list(names.DIGITS)
