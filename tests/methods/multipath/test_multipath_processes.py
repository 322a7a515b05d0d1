"""Throughput-adjusted rates when the images are spread over two processes."""

import pytest
import torch
from multipath_models import batch_of, dense, multipath_model
from two_processes import results_of_two

from dyn_d2.methods.multipath.paths import path_probabilities

from detectron2.utils.events import EventStorage


def _rates(rank: int) -> tuple[list[float], list[float]]:
    """Of one training step: the factor of each layer's gradients, and mean p^2 of this process' own images."""
    torch.manual_seed(0)
    model = multipath_model().train()
    torch.manual_seed(1 + rank)
    batch = batch_of(6)
    with EventStorage(), torch.no_grad():
        model(batch)
        scores, _ = dense(model, batch)
    shares = path_probabilities(model.backbone.tree, scores, 1.0, torch.zeros(6)).layers
    return [float(layer.gradient_rate) for layer in model.backbone.layers], [float(p.square().mean()) for p in shares]


@pytest.mark.slow
def test_the_share_of_images_is_that_of_all_processes(tmp_path):
    (first, own), (second, other) = results_of_two(_rates, tmp_path)
    assert first == second
    squares = (torch.tensor(own) + torch.tensor(other)) / 2
    assert torch.allclose(torch.tensor(first), squares.rsqrt(), rtol=1e-4)
    assert not torch.allclose(torch.tensor(own), torch.tensor(other), rtol=1e-2)
