"""Weights of plain networks in gated ones."""

import pickle

import pytest
import torch
import torchvision
from gated_nets import gated_cfg, settle
from torch import nn

from dyn_d2.checkpoint import CheckpointError, DynCheckpointer
from dyn_d2.checkpoint.torchvision_names import from_torchvision

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_backbone, build_resnet_backbone

FEATURES = {"res2": "layer1", "res3": "layer2", "res4": "layer3", "res5": "layer4"}


class Model(nn.Module):
    """What a meta-architecture is to a checkpoint: something with a ``backbone``."""

    def __init__(self, cfg, classes: int = 0):
        super().__init__()
        self.backbone = build_backbone(cfg, ShapeSpec(channels=3))
        if classes:
            self.linear = nn.Linear(512, classes)


def _cfg(depth: int, fpn: bool = False, **keys):
    if fpn:
        keys["MODEL__BACKBONE__NAME"] = "build_gated_fpn_backbone"
    return gated_cfg(
        MODEL__RESNETS__DEPTH=depth,
        MODEL__RESNETS__RES2_OUT_CHANNELS=256 if depth >= 50 else 64,
        MODEL__RESNETS__STRIDE_IN_1X1=False,
        **keys,
    )


def _features(network: nn.Module, x):
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    features = {}
    for ours, theirs in FEATURES.items():
        x = features[ours] = getattr(network, theirs)(x)
    return features


@pytest.fixture(scope="module", params=[18, 50])
def torchvision_file(request, tmp_path_factory):
    """A file as torchvision publishes them, with random numbers, and its network."""
    torch.manual_seed(0)
    network = settle(getattr(torchvision.models, f"resnet{request.param}")(num_classes=7)).eval()
    path = tmp_path_factory.mktemp("weights") / "resnet.pth"
    torch.save(network.state_dict(), path)
    return request.param, network, str(path)


@pytest.mark.parametrize("fpn", [False, True], ids=["backbone", "bottom_up"])
def test_torchvision_weights_give_torchvisions_features(torchvision_file, fpn):
    depth, network, path = torchvision_file
    model = Model(_cfg(depth, fpn)).eval()
    checkpointer = DynCheckpointer(model)
    checkpointer.load(path)
    body = model.backbone.bottom_up if fpn else model.backbone
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, features = _features(network, x), body(x)
    for name, feature in features.items():
        size = expected[name].abs().max()
        torch.testing.assert_close(feature / size, expected[name] / size, atol=1e-4, rtol=0)
    left = [name for name in checkpointer.report.missing if "fpn_" not in name]
    assert not left and checkpointer.report.unused == ["linear.bias", "linear.weight"]


@pytest.mark.parametrize("policy", ["skipnet_rnn", "skipnet_ffgate1"])
@pytest.mark.parametrize("fpn", [False, True], ids=["backbone", "bottom_up"])
def test_gates_are_new_and_not_an_error(torchvision_file, fpn, policy, caplog):
    depth, _, path = torchvision_file
    if policy == "skipnet_ffgate1" and depth > 18:
        pytest.skip("as many parameters as the network, for nothing more")
    model = Model(_cfg(depth, fpn, MODEL__POLICY__NAME=policy))
    before = {name: value.clone() for name, value in model.backbone.state_dict().items() if "policy." in name}
    checkpointer = DynCheckpointer(model)
    checkpointer.load(path)
    report = checkpointer.report
    assert report.gates and all(".policy." in name for name in report.gates)
    assert f"new: {len(report.gates)} parameters of the gates" in report.table()
    assert "policy" not in report.table()
    assert all(torch.equal(value, model.backbone.state_dict()[name]) for name, value in before.items())
    with pytest.raises(CheckpointError, match="policy"):
        checkpointer.load(path, strict=True)


def test_the_classifiers_layer_loads_too(torchvision_file):
    depth, network, path = torchvision_file
    if depth != 18:
        pytest.skip("one depth is enough")
    model = Model(_cfg(depth), classes=7)
    checkpointer = DynCheckpointer(model)
    checkpointer.load(path)
    assert checkpointer.report.complete and not checkpointer.report.unused
    assert torch.equal(model.linear.weight, network.fc.weight)


@pytest.mark.parametrize("fpn", [False, True], ids=["backbone", "bottom_up"])
def test_a_model_zoo_file_loads(tmp_path, fpn):
    cfg = _cfg(18, fpn, MODEL__POLICY__NAME="skipnet_rnn")
    plain = settle(build_resnet_backbone(cfg, ShapeSpec(channels=3)))
    weights = {name: value.numpy() for name, value in plain.state_dict().items() if "tracked" not in name}
    with open(tmp_path / "R-18.pkl", "wb") as file:
        pickle.dump({"model": weights, "__author__": "a test", "matching_heuristics": True}, file)
    model = Model(cfg)
    checkpointer = DynCheckpointer(model)
    checkpointer.load(str(tmp_path / "R-18.pkl"))
    own = (model.backbone.bottom_up if fpn else model.backbone).state_dict()
    for name, value in weights.items():
        assert torch.equal(own[name], torch.from_numpy(value))
    assert not [n for n in checkpointer.report.missing if n not in checkpointer.report.gates and "fpn_" not in n]


def test_narrow_moe_takes_plain_weights(torchvision_file):
    depth, network, path = torchvision_file
    model = Model(_cfg(depth, MODEL__GATED__UNIT="channel", MODEL__POLICY__NAME="deepmoe"))
    checkpointer = DynCheckpointer(model)
    checkpointer.load(path)
    assert set(checkpointer.report.missing) == set(checkpointer.report.gates)
    assert torch.equal(model.backbone.res5[1].conv2.weight, network.layer4[1].conv2.weight)


def test_a_gated_checkpoint_of_another_policy_is_not_a_plain_network(tmp_path):
    """Where the file has gates, those that it lacks are missing and not merely new."""
    source = Model(_cfg(18, MODEL__POLICY__NAME="skipnet_ffgate2"))
    state = source.state_dict()
    lost = next(name for name in state if ".policy." in name)
    del state[lost]
    torch.save({"model": state}, tmp_path / "model.pth")
    checkpointer = DynCheckpointer(Model(_cfg(18, MODEL__POLICY__NAME="skipnet_ffgate2")))
    checkpointer.load(str(tmp_path / "model.pth"))
    assert checkpointer.report.missing == [lost] and not checkpointer.report.gates


def test_torchvisions_mobilenet_gives_its_features(tmp_path):
    network = settle(torchvision.models.mobilenet_v2()).eval()
    torch.save(network.state_dict(), tmp_path / "mobilenet.pth")
    model = Model(gated_cfg("build_gated_mobilenetv2_backbone", MODEL__RESNETS__OUT_FEATURES=["last"])).eval()
    checkpointer = DynCheckpointer(model)
    checkpointer.load(str(tmp_path / "mobilenet.pth"))
    assert checkpointer.report.complete and checkpointer.report.unused == ["linear.bias", "linear.weight"]
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.backbone(x)["last"], network.features(x), atol=1e-4, rtol=1e-4)


def test_torchvisions_vgg_gives_its_features(tmp_path):
    with torch.device("meta"):  # the classifier has 120 million parameters, which nobody needs here
        network = torchvision.models.vgg16_bn()
    network.classifier = nn.Sequential(*[nn.Identity()] * 6, nn.Linear(1, 1))
    network = settle(network.to_empty(device="cpu")).eval()
    for layer in network.features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    torch.save(network.state_dict(), tmp_path / "vgg.pth")
    keys = {"MODEL__GATED__UNIT": "channel", "MODEL__RESNETS__OUT_FEATURES": ["stage5"]}
    model = Model(gated_cfg("build_gated_vgg_backbone", **keys)).train()
    checkpointer = DynCheckpointer(model)
    checkpointer.load(str(tmp_path / "vgg.pth"))
    assert checkpointer.report.complete and all("classifier" in name for name in checkpointer.report.unused)
    own = model.backbone.features.state_dict()
    theirs = {name: value for name, value in network.features.state_dict().items() if "tracked" not in name}
    assert all(torch.equal(own[name], value) for name, value in theirs.items())


def test_names():
    with torch.device("meta"):
        files = [getattr(torchvision.models, name)().state_dict() for name in ("resnet18", "resnet50", "alexnet")]
    names = from_torchvision(files[0])
    expected = {"stem.conv1.norm.running_var", "res3.0.shortcut.norm.bias", "res5.1.conv2.weight", "linear.bias"}
    assert expected <= set(names) and from_torchvision(files[1]) and from_torchvision(files[2]) is None


def test_a_network_of_torchvision_itself_keeps_its_names(torchvision_file):
    depth, network, path = torchvision_file
    own = getattr(torchvision.models, f"resnet{depth}")(num_classes=7)
    checkpointer = DynCheckpointer(own)
    checkpointer.load(path)
    assert checkpointer.report.complete and torch.equal(own.fc.weight, network.fc.weight)
