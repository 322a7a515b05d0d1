"""The trees that dyn_d2 ships, against the data sets that they are for."""

from dyn_d2.data.classification import names
from dyn_d2.data.digit_scenes import SEMANTIC_CLASSES
from dyn_d2.hierarchy import load_hierarchy


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
