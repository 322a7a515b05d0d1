"""Weights of Inception-ResNet-v2 under the names that others give them."""

import re

import pytest
import torch

from dyn_d2.methods.layer_cascade.inception_resnet import InceptionResNet
from dyn_d2.methods.layer_cascade.timm_names import from_timm


def _their_name(name: str) -> str:
    """Ours -> theirs, for the networks' common part."""
    if ".conv2d." in name:
        return name
    name = re.sub(r"\.norm\.(\w+)$", r".bn.\1", name)
    name = name if ".bn." in name else re.sub(r"\.weight$", ".conv.weight", name)
    name = name.replace("mixed_5b.branch3.0.", "mixed_5b.branch3.1.")
    single = r"((?:repeat|repeat_1|repeat_2)\.\d+|block8|mixed_5b|mixed_6a)\.branch0\.0\."
    return re.sub(single, r"\1.branch0.", name)


@pytest.fixture(scope="module")
def net():
    return InceptionResNet((1, 1, 2), "BN")


def test_every_parameter_finds_its_place(net):
    ours = {name: value for name, value in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    theirs = {_their_name(name): value for name, value in ours.items()}
    # Names as they stand in the published files.
    assert {
        "conv2d_1a.conv.weight",
        "conv2d_4a.bn.running_var",
        "mixed_5b.branch0.conv.weight",
        "mixed_5b.branch1.1.bn.bias",
        "mixed_5b.branch3.1.conv.weight",
        "repeat.0.branch0.conv.weight",
        "repeat.0.branch2.2.conv.weight",
        "repeat.0.conv2d.bias",
        "mixed_6a.branch0.conv.weight",
        "repeat_1.0.branch1.2.conv.weight",
        "mixed_7a.branch0.1.conv.weight",
        "block8.branch0.conv.weight",
        "block8.conv2d.weight",
    } <= theirs.keys()
    theirs["classif.weight"], theirs["conv2d_1a.bn.num_batches_tracked"] = torch.zeros(1), torch.zeros(())
    renamed = from_timm(theirs)
    assert renamed.keys() - ours.keys() == {"classif.weight"} and ours.keys() <= renamed.keys()
    assert all(torch.equal(renamed[name], value) for name, value in ours.items())


def test_other_networks_are_left_alone():
    assert from_timm({"conv1.weight": torch.zeros(1)}) is None
