"""Files of DarkNet are read number by number."""

import numpy as np
import pytest
import torch

from dyn_d2.checkpoint import CheckpointError, DynCheckpointer, read_checkpoint
from dyn_d2.methods.fsrw.darknet import DarkNet19

PARTS = ("norm.bias", "norm.weight", "norm.running_mean", "norm.running_var", "weight")


@pytest.fixture(scope="module")
def net():
    net = DarkNet19()
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + len(name))
    return net


def write(path, net, version, tail=0):
    tensors = net.state_dict()
    with open(path, "wb") as file:
        file.write(np.array(version, dtype="<i4").tobytes())
        file.write(np.array([7], dtype="<i8" if version[0] * 10 + version[1] >= 2 else "<i4").tobytes())
        for i in range(1, 19):
            for part in PARTS:
                file.write(tensors[f"conv{i}.{part}"].numpy().astype("<f4").tobytes())
        file.write(np.zeros(tail, dtype="<f4").tobytes())


@pytest.mark.parametrize(("name", "version", "tail"), [("a.conv.23", (0, 1, 0), 0), ("b.weights", (0, 2, 0), 9)])
def test_weights_reach_the_backbone(tmp_path, net, name, version, tail):
    write(tmp_path / name, net, version, tail)
    holder = torch.nn.Module()
    holder.backbone = DarkNet19()
    checkpointer = DynCheckpointer(holder)
    checkpointer.load(str(tmp_path / name), checkpointables=[], strict=True)
    assert all(torch.equal(a, b) for (n, a), b in zip(net.state_dict().items(), holder.backbone.state_dict().values(),
                                                      strict=True) if "tracked" not in n)  # fmt: skip


def test_other_files_are_refused(tmp_path, net):
    write(tmp_path / "whole.weights", net, (0, 1, 0))
    (tmp_path / "torn.weights").write_bytes((tmp_path / "whole.weights").read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="torn.weights ends within convolution 18"):
        read_checkpoint(str(tmp_path / "torn.weights"))
    (tmp_path / "text.weights").write_bytes(b"this is text, not numbers")
    with pytest.raises(CheckpointError, match="does not begin like"):
        read_checkpoint(str(tmp_path / "text.weights"))
