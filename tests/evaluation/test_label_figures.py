"""Label maps: what is in them, and their pictures."""

import numpy as np
import pytest
import torch

from dyn_d2.evaluation.label_figures import draw_label_maps, label_colour, label_maps
from dyn_d2.hierarchy import Hierarchy
from dyn_d2.methods.dsspn.label_plan import LabelPlan

TREE = Hierarchy({"all": ["animal", "sky"], "animal": ["cat", "dog"]}, {"pets": {"c": "cat", "d": "dog", "s": "sky"}})
CONCEPTS = ("cat", "dog", "sky")


def _output(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    scores = torch.nn.functional.one_hot(labels, 3).permute(2, 0, 1)
    return {"sem_seg": scores, "levels": LabelPlan(TREE, CONCEPTS).levels(labels)}


def test_each_depth_has_its_shares_and_a_label_one_colour():
    labels = torch.tensor([[0, 0, 1, 2], [0, 0, 1, 1]])
    colours = ["#111111", "#222222", "#333333"]
    depth, classes = label_maps(_output(labels), ["c", "d", "s"], colours, TREE, CONCEPTS)
    assert (depth.title, depth.shares()) == ("depth 1", {"animal": 87.5, "sky": 12.5})
    assert (classes.title, classes.shares()) == ("classes", {"c": 50.0, "d": 37.5, "s": 12.5})
    assert depth.colours[TREE.concepts.index("sky")] == "#333333"
    assert depth.colours[TREE.concepts.index("animal")] not in colours


def test_stages_and_no_tree():
    output = {"sem_seg": torch.rand(2, 4, 4), "settled_by": torch.tensor([[0, 2]]).repeat(4, 2)}
    maps = label_maps(output, ["a", "b"])
    assert [labels.title for labels in maps] == ["classes", "settled by"]
    assert maps[1].shares() == {"stage1": 50.0, "stage3": 50.0}


def test_many_labels_have_many_colours():
    assert len({label_colour(number) for number in range(150)}) == 150


@pytest.mark.parametrize("size", [(20, 20), (6, 90)])
def test_a_panel_a_map_and_long_legends_end(size):
    labels = torch.arange(size[0] * size[1]).view(size) % 20
    output = {"sem_seg": torch.nn.functional.one_hot(labels, 20).permute(2, 0, 1)}
    figure = draw_label_maps(np.zeros((*size, 3), np.uint8), label_maps(output, [f"label {i}" for i in range(20)]))
    assert [axis.get_title() for axis in figure.axes] == ["image", "classes"]
    texts = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert len(texts) == 15 and texts[-1] == "and 6 more" and texts[0] == "label 0 5.0 %"
