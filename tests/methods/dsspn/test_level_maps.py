"""Label maps of a segmentor on a concept tree."""

import torch

from dyn_d2.evaluation.label_figures import class_map
from dyn_d2.hierarchy import Hierarchy
from dyn_d2.methods.dsspn.figures import level_maps
from dyn_d2.methods.dsspn.label_plan import LabelPlan

TREE = Hierarchy({"all": ["animal", "sky"], "animal": ["cat", "dog"]}, {"pets": {"c": "cat", "d": "dog", "s": "sky"}})
CONCEPTS = ("cat", "dog", "sky")


def test_each_depth_has_its_shares_and_a_label_one_colour():
    labels = torch.tensor([[0, 0, 1, 2], [0, 0, 1, 1]])
    scores, colours = torch.nn.functional.one_hot(labels, 3).permute(2, 0, 1), ["#111111", "#222222", "#333333"]
    classes = class_map(scores, ["c", "d", "s"], colours)
    (depth,) = level_maps(LabelPlan(TREE, CONCEPTS).levels(labels), TREE, CONCEPTS, classes)
    assert (depth.title, depth.shares()) == ("depth 1", {"animal": 87.5, "sky": 12.5})
    assert depth.colours[TREE.concepts.index("sky")] == "#333333"
    assert depth.colours[TREE.concepts.index("animal")] not in colours
