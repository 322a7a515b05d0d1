"""Depthwise convolutions that stay in float32 under bfloat16."""

import copy
import pickle

import torch
from torch import nn

from dyn_d2.config.read import read_cfg
from dyn_d2.modeling.precision import keep_precise


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.Conv2d(8, 8, 5, 1, 2, groups=8),
        nn.Conv2d(8, 4, 5, 1, 2, groups=4), nn.Conv2d(4, 4, 5, 1, 2),
    )  # fmt: skip


def test_which_ones_and_their_types():
    net, plain = _net(), _net()
    assert keep_precise(read_cfg("", ["SOLVER.AMP.ENABLED", True, "MODEL.DEVICE", "cpu"]), net) == 2
    seen = []
    for layer in net:
        layer.register_forward_hook(lambda module, inputs, output: seen.append((type(output.grad_fn).__name__, output)))
    x = torch.randn(2, 8, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x)
        expected = plain(x)
    assert [output.dtype for _, output in seen] == [torch.bfloat16] * 5
    assert [name.startswith("ToCopy") for name, _ in seen] == [False, True, True, False, False]
    torch.testing.assert_close(out, expected, atol=0.03, rtol=0.03)
    out.float().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in net.parameters())


def test_elsewhere_nothing_changes_and_copies_are_their_own():
    for opts in (["MODEL.DEVICE", "cpu"], ["SOLVER.AMP.ENABLED", True, "MODEL.DEVICE", "cuda"]):
        assert keep_precise(read_cfg("", opts), _net()) == 0
    net, plain = _net(), _net()
    keep_precise(read_cfg("", ["SOLVER.AMP.ENABLED", True, "MODEL.DEVICE", "cpu"]), net)
    x = torch.randn(2, 8, 9, 9)
    assert torch.equal(net(x), plain(x))
    assert pickle.loads(pickle.dumps(net))[1].forward.args[0] is not net[1]
    copied = copy.deepcopy(net)
    with torch.no_grad():
        copied[1].weight.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        assert copied[1](x).std(dim=(2, 3)).max() < 1e-3 < net[1](x).std(dim=(2, 3)).min()
