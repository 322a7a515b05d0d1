"""Multiply-adds against what really happens: one for each tap of each output value."""

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from dyn_d2.config.derive import build_cfg
from dyn_d2.gating.cost import chain_cost, conv_cost, executed_by, linear_cost, lstm_cost
from dyn_d2.modeling.build import build_model

from detectron2.utils.events import EventStorage


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 1, "bias": True},
        {"kernel_size": (1, 5), "padding": (0, 2), "stride": (2, 1)},
        {"kernel_size": 3, "dilation": 4, "padding": 4},
        {"kernel_size": 3, "groups": 4},
    ],
)
@pytest.mark.parametrize("size", [(9, 14), (16, 16)])
def test_conv_cost_is_fvcores_and_the_size_is_the_outputs(arguments, size):
    conv = nn.Conv2d(8, 12, **arguments)
    cost, height, width = conv_cost(conv, *size)
    image = torch.zeros(1, 8, *size)
    assert (height, width) == tuple(conv(image).shape[-2:])
    assert cost == FlopCountAnalysis(conv, image).total()


def test_chain_cost_follows_the_sizes_and_passes_over_none():
    convs = [nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)]
    network = nn.Sequential(*convs)
    cost, height, width = chain_cost([convs[0], None, convs[1]], 13, 10)
    assert (height, width) == (7, 5)
    assert cost == FlopCountAnalysis(network, torch.zeros(1, 3, 13, 10)).total()
    assert chain_cost([], 5, 6) == (0.0, 5, 6)


def test_linear_and_lstm_cost_count_the_weights():
    layers = [nn.Linear(5, 7), nn.Linear(7, 2, bias=False)]
    assert linear_cost(*layers) == 5 * 7 + 7 * 2
    cell = nn.LSTMCell(6, 10)
    assert lstm_cost(cell) == cell.weight_ih.numel() + cell.weight_hh.numel()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_what_ran_is_counted_in_32_bits_under_autocast(kind):
    shares, costs = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([1.5e8, 35_638_785.0])
    with torch.autocast("cpu", kind):
        found = executed_by(shares.to(kind), costs)
    assert found.tolist() == [1.5e8, 185_638_784.0]  # the nearest number of 32 bits


def test_losses_and_share_of_a_gated_network_under_autocast():
    opts = ["MODEL.POLICY.SKIPNET.RELAXATION", "noisy", "MODEL.POLICY.BUDGET.SHARE", "0.65"]
    cfg = build_cfg("SkipNet/digits.yaml", ["MODEL.DEVICE", "cpu", *opts])
    batch = [{"image": torch.full((3, 8, 8), 30 * i, dtype=torch.uint8), "label": i} for i in range(4)]
    found = {}
    torch.manual_seed(0)
    model = build_model(cfg).train()
    for kind in (None, torch.float16):
        torch.manual_seed(1)
        with EventStorage() as events, torch.autocast("cpu", kind or torch.float16, enabled=kind is not None):
            losses = model(batch)
            found[kind] = float(losses["loss_budget"].detach()), events.latest()["gates/executed_share"][0]
    assert found[torch.float16] == pytest.approx(found[None], rel=0.05)
