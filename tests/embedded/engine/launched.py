"""What each of two processes runs in test_defaults.py."""

import json
import time
from pathlib import Path

import torch
from torch import nn

import dyn_d2  # noqa: F401  chooses the backend
from dyn_d2.engine.trainer import distribute


class SkippingBlock(nn.Module):
    """x + f(x), or x alone where the block is skipped: then f's parameters have no part in the result."""

    skips_parameters = True

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.always, self.sometimes = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, skip: bool) -> torch.Tensor:
        x = self.always(x)
        return x if skip else x + self.sometimes(x)


def step_then_fail(folder: str) -> None:
    """A step of a model that process 1 skips half of; the weights go into a file. Then process 1 fails, and process 0
    would go on."""
    from detectron2.utils import comm

    model = distribute(SkippingBlock())
    model(torch.ones(2, 4), skip=comm.get_rank() == 1).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).tolist()
    report = {"world": comm.get_world_size(), "local": comm.get_local_rank(), "weights": comm.all_gather(weights)}
    Path(folder, f"{comm.get_rank()}.json").write_text(json.dumps(report))
    comm.synchronize()
    if comm.get_rank() == 1:
        raise ValueError("process 1 has had enough")
    time.sleep(300)  # ended by launch long before
