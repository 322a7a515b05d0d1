"""Small forms of checkpoints, and models by name."""

import pytest
import torch
from tiny_detection import CLASSES, save_detector

from dyn_d2 import model_zoo
from dyn_d2.checkpoint import CheckpointError, DynCheckpointer
from dyn_d2.checkpoint.model import load_model
from dyn_d2.engine.predictor import load_predictor
from dyn_d2.model_zoo import packed
from dyn_d2.utils.errors import UserError


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("zoo")
    save_detector(folder)
    return str(folder / "model_final.pth")


@pytest.mark.parametrize(("bits", "error"), [(32, 0.0), (16, 1e-3), (8, 1 / 127)])
def test_numbers_come_back_as_exactly_as_bits_allow(weights, bits, error, tmp_path) -> None:
    size = model_zoo.pack(weights, tmp_path / "a.pth", bits=bits, card={"data": "boxes"})
    whole = load_model(weights)
    small = model_zoo.load(tmp_path / "a.pth")
    for (name, wanted), (_, given) in zip(
        whole.model.state_dict().items(), small.model.state_dict().items(), strict=True
    ):
        assert given.dtype == wanted.dtype and given.shape == wanted.shape
        most = wanted.abs().max() if wanted.is_floating_point() and wanted.dim() > 1 else torch.tensor(0.0)
        assert (given - wanted).abs().max() <= error * most, name
    numbers = sum(p.numel() for p in whole.model.parameters())
    assert size < 1.15 * numbers * bits / 8 + 200_000 and small.described["classes"] == list(CLASSES)


def test_what_a_package_brings_is_left_out_and_has_to_be_the_same(weights, tmp_path, monkeypatch) -> None:
    content = torch.load(weights, weights_only=True)
    stem = "backbone.bottom_up.stem.conv1.weight"
    build = packed.build_model

    def with_package(shift):
        def made(cfg):
            model = build(cfg)
            with torch.no_grad():
                model.get_parameter(stem).copy_(content["model"][stem] + shift)
            return model

        return made

    monkeypatch.setattr(packed, "build_model", with_package(0.0))
    model_zoo.pack(weights, tmp_path / "a.pth", bits=32)
    file = torch.load(tmp_path / "a.pth", weights_only=True)
    assert stem not in file["model"] and stem in file["packed"]["from_package"]
    assert torch.equal(model_zoo.load(tmp_path / "a.pth").model.get_parameter(stem), content["model"][stem])
    monkeypatch.setattr(packed, "build_model", with_package(1.0))
    with pytest.raises(CheckpointError, match="trained on other weights than those that the package"):
        model_zoo.load(tmp_path / "a.pth")


def test_models_by_name(weights, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(packed, "FOLDER", tmp_path)
    with pytest.raises(UserError, match="no model 'boxes' comes with dyn_d2: there are none"):
        model_zoo.get("boxes")
    model_zoo.pack(weights, tmp_path / "boxes.pth", card={"data": "boxes"})
    assert model_zoo.names() == ["boxes"] and model_zoo.card("boxes") == {"data": "boxes"}
    assert load_predictor("zoo:boxes").classes == model_zoo.get("boxes").classes == list(CLASSES)
    with pytest.raises(CheckpointError, match="zoo:boxes comes with its config"):
        load_predictor("zoo:boxes", "", ["MODEL.RPN.NMS_THRESH", "0.6"])
    with pytest.raises(UserError, match=r"no model 'boxs' comes with dyn_d2 \(did you mean boxes\?\)"):
        model_zoo.get("boxs")


def test_what_another_shipped_model_has_is_left_out(weights, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(packed, "FOLDER", tmp_path)
    model_zoo.pack(weights, tmp_path / "first.pth", bits=8)
    content = torch.load(weights, weights_only=True)
    changed = [name for name in content["model"] if "box_predictor" in name]
    for name in changed:
        content["model"][name] = content["model"][name] * 1.5 + 0.1
    torch.save(content, tmp_path / "tuned")
    model_zoo.pack(str(tmp_path / "tuned"), tmp_path / "second.pth", bits=8, beside="first")
    stored = torch.load(tmp_path / "second.pth", weights_only=True)["model"]
    assert {name.removesuffix("/scale") for name in stored} == set(changed)
    first, second = (model_zoo.load(model_zoo.packed.path_of(name)).model.state_dict() for name in ("first", "second"))
    assert changed and {name for name in first if not torch.equal(first[name], second[name])} == set(changed)
    model_zoo.pack(str(tmp_path / "tuned"), tmp_path / "alone.pth", bits=8)
    alone = model_zoo.load(tmp_path / "alone.pth").model.state_dict()
    assert all(torch.equal(value, second[name]) for name, value in alone.items())
    with pytest.raises(UserError, match="second has most of its weights from first: pack beside that one"):
        model_zoo.pack(weights, tmp_path / "third.pth", bits=8, beside="second")
    model_zoo.pack(str(tmp_path / "tuned"), tmp_path / "first.pth", bits=16)  # another one of this name
    with pytest.raises(CheckpointError, match="was packed beside another first than the one that is here"):
        model_zoo.load(tmp_path / "second.pth")


def test_packed_numbers_are_never_taken_for_weights(weights, tmp_path) -> None:
    """Integers would fill parameters without an error."""
    file = tmp_path / "small.pth"
    model_zoo.pack(weights, file, bits=8)
    model = model_zoo.load(file).model
    for read in (lambda: load_model(str(file)), lambda: DynCheckpointer(model).load(str(file), checkpointables=[])):
        with pytest.raises(CheckpointError, match="is a packed model of 8 bits, whose numbers are no weights yet"):
            read()


def test_other_files_are_refused(weights, tmp_path) -> None:
    with pytest.raises(CheckpointError, match="is no packed model"):
        model_zoo.load(weights)
    with pytest.raises(UserError, match="4 bits a number: use one of 8, 16, 32"):
        model_zoo.pack(weights, tmp_path / "a.pth", bits=4)
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match="does not carry its config"):
        model_zoo.pack(str(tmp_path / "bare.pth"), tmp_path / "a.pth")


def test_what_is_shipped_is_small_and_has_cards() -> None:
    files = list(packed.FOLDER.glob("*"))
    assert sum(file.stat().st_size for file in files) <= model_zoo.MOST
    for name in model_zoo.names():
        assert {"config", "command", "data"} <= model_zoo.card(name).keys()
