"""One optimizer whose steps are SGD's for the network and Adam's for the policy."""

import copy

import pytest
import torch
from torch import nn

from dyn_d2.config.read import read_cfg
from dyn_d2.engine.optimizers import PartlyAdam, chosen_optimizer, train_by_adam
from dyn_d2.gating.hooks import separate_gates


def _networks() -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    return network, copy.deepcopy(network)


def _sgd(network: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def _step(network: nn.Module, *optimizers: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
    for optimizer in optimizers:
        optimizer.zero_grad()
    network(x).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()


def _mixed(network: nn.Sequential) -> torch.optim.Optimizer:
    cfg = read_cfg("", ["SOLVER.POLICY_OPTIMIZER", "Adam", "SOLVER.BASE_LR", "0.1"])
    optimizer = chosen_optimizer(cfg, _sgd(network))
    separate_gates(optimizer, network[2], 0.05, 0.02)
    train_by_adam(optimizer, network[2].parameters())
    return optimizer


def test_each_part_gets_the_steps_of_its_optimizer() -> None:
    network, other = _networks()
    mixed = _mixed(network)
    apart = (
        torch.optim.SGD(other[0].parameters(), lr=0.1, momentum=0.9, weight_decay=0.01),
        torch.optim.Adam(other[2].parameters(), lr=0.005, weight_decay=0.02),
    )
    schedule = torch.optim.lr_scheduler.StepLR(mixed, 3, 0.5)
    for seed in range(6):
        _step(network, mixed, seed=seed)
        _step(other, *apart, seed=seed)
        schedule.step()
        for optimizer in apart:
            if seed == 2:
                optimizer.param_groups[0]["lr"] *= 0.5
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_it_goes_on_where_it_was_saved() -> None:
    network, other = _networks()
    first = _mixed(network)
    for seed in range(3):
        _step(network, first, seed=seed)
    other.load_state_dict(network.state_dict())
    second = _mixed(other)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for seed in range(3, 6):
        _step(network, first, seed=seed)
        _step(other, second, seed=seed)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def test_what_cannot_be_asked_for() -> None:
    network, _ = _networks()
    with pytest.raises(ValueError, match="share a group with others"):
        train_by_adam(PartlyAdam(_sgd(network).param_groups, read_cfg("", [])), network[2].parameters())
    cfg = read_cfg("", ["SOLVER.POLICY_OPTIMIZER", "Adam", "SOLVER.OPTIMIZER", "AdamW"])
    with pytest.raises(ValueError, match="POLICY_OPTIMIZER Adam beside SOLVER.OPTIMIZER AdamW"):
        chosen_optimizer(cfg, _sgd(network))
    plain = _sgd(network)
    assert chosen_optimizer(read_cfg("", []), plain) is plain


def test_gradients_of_both_parts_are_clipped() -> None:
    opts = ["SOLVER.POLICY_OPTIMIZER", "Adam", "SOLVER.CLIP_GRADIENTS.ENABLED", "True",
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.001"]  # fmt: skip
    network, _ = _networks()
    mixed = chosen_optimizer(read_cfg("", opts), _sgd(network))
    separate_gates(mixed, network[2], 0.05, 0.02)
    train_by_adam(mixed, network[2].parameters())
    _step(network, mixed, seed=0)
    assert max(parameter.grad.abs().max().item() for parameter in network.parameters()) == pytest.approx(0.001)
