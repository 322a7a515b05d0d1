"""Padding as TensorFlow has it, against timm's own layer."""

import pytest
import torch
from torch import nn

from dyn_d2.modeling.backbone.timm_same import use_whole_numbers

layers = pytest.importorskip("timm.layers")


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 3, (5, 2)])
def test_it_is_timms(kernel, dilation, stride):
    conv = layers.Conv2dSame(3, 4, kernel, stride=stride, dilation=dilation)
    whole = nn.Sequential(conv)
    for height in range(5, 13):
        images = torch.randn(2, 3, height, 17 - height)
        conv.__class__ = layers.Conv2dSame
        right = whole(images)
        use_whole_numbers(whole)
        assert torch.equal(whole(images), right)


def test_where_the_strides_divide_the_side_a_graph_of_any_size_knows_it():
    blocks = [layers.Conv2dSame(3, 3, 3, stride=2) for _ in range(5)]
    model = nn.Sequential(*blocks)
    use_whole_numbers(model)
    rows = 32 * torch.export.Dim("rows", min=2, max=64)
    program = torch.export.export(model, (torch.randn(1, 3, 96, 96),), dynamic_shapes=({2: rows},), strict=False)
    (last,) = program.graph.output_node().args[0]
    assert last.meta["val"].shape[2].node.expr.is_Symbol and last.meta["val"].shape[3] == 3
