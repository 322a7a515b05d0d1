"""Checkpoints are whole, safe and never half loaded in silence."""

import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from dyn_d2.checkpoint import CheckpointError, DynCheckpointer, read_checkpoint


class Net(nn.Module):
    def __init__(self, classes: int = 2, extra: bool = False) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 3)
        self.roi_heads = nn.Module()
        self.roi_heads.box_predictor = nn.Module()
        self.roi_heads.box_predictor.cls_score = nn.Linear(3, classes + 1)
        if extra:
            self.extra = nn.Linear(1, 1)


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/dyn_d2_was_here",)


def test_round_trip_with_metadata(tmp_path) -> None:
    model = Net()
    DynCheckpointer(model, str(tmp_path), metadata={"classes": ["a", "b"]}).save("model_final", iteration=7)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_final.pth"]
    other = Net()
    checkpointer = DynCheckpointer(other, str(tmp_path))
    rest = checkpointer.load(checkpointer.get_checkpoint_file(), strict=True)
    assert rest["iteration"] == 7 and checkpointer.report.metadata == {"classes": ["a", "b"]}
    assert checkpointer.report.complete and len(checkpointer.report.loaded) == 4
    assert torch.equal(model.backbone.weight, other.backbone.weight)


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    checkpointer = DynCheckpointer(Net(), str(tmp_path))
    checkpointer.save("model")
    before = (tmp_path / "model.pth").read_bytes()

    def half(data, file) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        checkpointer.save("model")
    assert (tmp_path / "model.pth").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model.pth"]


def test_report_names_what_is_missing_unused_and_of_another_shape(tmp_path) -> None:
    DynCheckpointer(Net(2, extra=True), str(tmp_path), metadata={"classes": ["a", "b"]}).save("m")
    model = Net(4)
    model.neck = nn.Linear(2, 2)
    checkpointer = DynCheckpointer(model)
    checkpointer.load(str(tmp_path / "m.pth"))
    report = checkpointer.report
    assert report.missing == ["neck.bias", "neck.weight"]
    assert report.unused == ["extra.bias", "extra.weight"]
    assert [name for name, _, _ in report.mismatched] == [
        "roi_heads.box_predictor.cls_score.bias",
        "roi_heads.box_predictor.cls_score.weight",
    ]
    assert report.loaded == ["backbone.bias", "backbone.weight"]
    assert "2 loaded, 4 re-initialised, 2 unused" in report.table()


def test_strict_names_both_class_counts_and_the_key(tmp_path) -> None:
    DynCheckpointer(Net(2), str(tmp_path), metadata={"classes": ["cat", "dog"]}).save("m")
    with pytest.raises(CheckpointError, match=r"2 classes \(cat, dog\).*MODEL.ROI_HEADS.NUM_CLASSES is 5"):
        DynCheckpointer(Net(5)).load(str(tmp_path / "m.pth"), strict=True)
    with pytest.raises(CheckpointError, match=r"missing in the file: extra\.\{bias, weight\}"):
        DynCheckpointer(Net(2, extra=True)).load(str(tmp_path / "m.pth"), strict=True)
    with pytest.raises(CheckpointError, match="no weights to evaluate"):
        DynCheckpointer(Net()).load("", strict=True)


def test_a_module_used_twice_counts_once(tmp_path) -> None:
    model = Net()
    DynCheckpointer(model, str(tmp_path)).save("m")
    twice = Net()
    twice.again = twice.backbone
    DynCheckpointer(twice).load(str(tmp_path / "m.pth"), strict=True)


def test_address_that_cannot_be_reached_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    with pytest.raises((CheckpointError, OSError), match="localhost:1/x.pth"):
        DynCheckpointer(nn.Linear(2, 2)).load("http://localhost:1/x.pth")


def test_a_missing_file_is_named_with_what_is_there(tmp_path, monkeypatch) -> None:
    def said(path: str) -> str:
        messages = set()
        for load in (read_checkpoint, DynCheckpointer(Net()).load):
            with pytest.raises(FileNotFoundError) as caught:
                load(path)
            messages.add(str(caught.value))
        (message,) = messages
        return message.removeprefix(f"checkpoint {path} does not exist")

    (tmp_path / "output").mkdir()
    monkeypatch.chdir(tmp_path)
    assert said("zoo:any").startswith("zoo:any names a packed model, for predictors alone")
    assert said("output/none.pth") == ", and its folder holds no other: check the path."
    assert said("none.pth") == ", and its folder holds no other: check the path."
    for name in ("model_0000099.pth", "model_final.pth", "last_checkpoint"):
        (tmp_path / "output" / name).touch()
    assert said("output/model_finl.pth") == (
        ": nearest in its folder: output/model_final.pth, output/model_0000099.pth."
    )
    assert said("outptu/run/model_final.pth") == ": there is no folder outptu; nearest: output."
    assert said(f"{tmp_path}/output/xyz/m.pth") == f": there is no folder {tmp_path}/output/xyz."


@pytest.mark.parametrize("name", ["evil.pth", "evil.pkl"])
def test_files_that_try_to_run_code_are_refused(tmp_path, name: str) -> None:
    marker = "/tmp/dyn_d2_was_here"
    path = tmp_path / name
    if name.endswith("pkl"):
        path.write_bytes(pickle.dumps({"model": Evil(), "__author__": "x"}))
    else:
        torch.save({"model": Evil()}, path)
    with pytest.raises(CheckpointError, match="refused"):
        DynCheckpointer(Net()).load(str(path))
    assert not os.path.exists(marker)


def test_damaged_file_is_named(tmp_path) -> None:
    path = tmp_path / "cut.pth"
    DynCheckpointer(Net(), str(tmp_path)).save("cut")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CheckpointError, match="cut.pth"):
        read_checkpoint(str(path))


def test_a_folder_in_place_of_a_checkpoint_is_named_with_the_file_that_may_be_meant(tmp_path) -> None:
    for name, meant in (
        ("", "a file, it holds no checkpoint"),
        ("model_0000009", f"its file {tmp_path}/model_0000009.pth"),
        ("model_final", f"its file {tmp_path}/model_final.pth"),
    ):
        if name:
            DynCheckpointer(Net(), str(tmp_path)).save(name)
        for read in (read_checkpoint, DynCheckpointer(Net()).load):
            with pytest.raises(FileNotFoundError, match=f"^checkpoint {tmp_path} is a folder: give {meant}.$"):
                read(str(tmp_path))


def test_numpy_arrays_in_both_formats(tmp_path) -> None:
    weights = {name: tensor.numpy() for name, tensor in Net().state_dict().items()}
    torch.save({"model": weights, "iteration": np.int64(3)}, tmp_path / "m.pth")
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"model": weights, "__author__": "test"}))
    for name in ("m.pth", "m.pkl"):
        model = Net()
        DynCheckpointer(model).load(str(tmp_path / name), strict=True)
        np.testing.assert_array_equal(model.backbone.weight.detach().numpy(), weights["backbone.weight"])


def test_not_a_number_is_refused(tmp_path) -> None:
    weights = nn.Linear(2, 2).state_dict()
    weights["bias"][1] = float("nan")
    torch.save({"model": weights}, tmp_path / "diverged.pth")
    with pytest.raises(CheckpointError, match=r"diverged.pth holds NaN in 1 tensors, bias the first"):
        DynCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / "diverged.pth"))
