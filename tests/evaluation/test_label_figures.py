"""Label maps: what is in them, and their pictures."""

import numpy as np
import pytest
import torch

from dyn_d2.evaluation.label_figures import class_map, draw_label_maps


def test_shares_are_percents_largest_first():
    labels = torch.tensor([[0, 0, 1, 2], [0, 0, 1, 1]])
    classes = class_map(torch.nn.functional.one_hot(labels, 3).permute(2, 0, 1), ["c", "d", "s"], ["#111111"] * 3)
    assert classes.title == "classes" and classes.colours == ["#111111"] * 3
    assert list(classes.shares().items()) == [("c", 50.0), ("d", 37.5), ("s", 12.5)]


@pytest.mark.parametrize("size", [(20, 20), (6, 90)])
def test_a_panel_a_map_and_long_legends_end(size):
    labels = torch.arange(size[0] * size[1]).view(size) % 20
    scores = torch.nn.functional.one_hot(labels, 20).permute(2, 0, 1)
    figure = draw_label_maps(np.zeros((*size, 3), np.uint8), [class_map(scores, [f"label {i}" for i in range(20)])])
    assert [axis.get_title() for axis in figure.axes] == ["image", "classes"]
    texts = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert len(texts) == 15 and texts[-1] == "and 6 more" and texts[0] == "label 0 5.0 %"
