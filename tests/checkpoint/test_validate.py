"""Files that are no checkpoints, or are made to do harm, are refused with one message that names the file."""

import os
import warnings
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dyn_d2.checkpoint.validate import (
    InvalidCheckpoint,
    require_sound_file,
    require_trainer_state,
    require_weights,
)

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
NESTED = b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60))


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.zeros(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    return model, optimizer


def checkpoint() -> dict:
    model, optimizer = trained()
    return {
        "model": model.state_dict(),
        "iteration": 3,
        "trainer": {"iteration": 3, "_trainer": {"iteration": 3, "optimizer": optimizer.state_dict()}},
        "dyn_d2": {"classes": ["a", "b"]},
        "best": np.float64(3.0),
        "array": np.arange(3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "view": torch.arange(12).reshape(3, 4)[1:, ::2],
        "shown_often": torch.ones(1).expand(100),
    }


def save(path, value, zipped: bool = True) -> str:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return str(path)


@FORMATS
def test_sound_files_pass(tmp_path, zipped):
    path = save(tmp_path / "a.pth", checkpoint(), zipped)
    require_sound_file(path)
    assert len(require_weights(torch.load(path, weights_only=False)["model"], path)) == 7


def tensors() -> dict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "sparse": torch.eye(3).to_sparse(),
            "csr": torch.eye(3).to_sparse_csr(),
            "meta": torch.empty(3, device="meta"),
            "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
            "huge view": torch.ones(1).expand(10**12),
        }


@FORMATS
@pytest.mark.parametrize("kind", ["sparse", "csr", "meta", "quantised", "huge view"])
def test_tensors_that_are_no_weights(tmp_path, kind, zipped):
    value = tensors()[kind]
    path = save(tmp_path / "a.pth", {"model": {"w": value}}, zipped)
    with pytest.raises(InvalidCheckpoint, match=f"checkpoint {path} was refused"):
        require_sound_file(path)
    if kind != "huge view":
        with pytest.raises(InvalidCheckpoint, match="a.pth.*'w' is a"):
            require_weights({"w": value}, "a.pth")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("zipped", [True, False])
def test_hash_that_takes_for_ever(tmp_path, zipped):
    content, path = b"\x80\x02}" + NESTED + b"K\x01s.", tmp_path / "a.pth"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", "3\n")
    else:
        path.write_bytes(content)
    with pytest.raises(InvalidCheckpoint, match="a.pth was refused: a key of type tuple"):
        require_sound_file(path)


def test_parts_that_are_not_there(tmp_path):
    path = save(tmp_path / "a.pth", checkpoint())
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.pth", "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, data[: len(data) // 2] if "/data/0" in entry.filename else data)
    with pytest.raises(InvalidCheckpoint, match=r"b.pth was refused: a tensor needs \d+ bytes, of which \d+ are"):
        require_sound_file(tmp_path / "b.pth")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "c.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(InvalidCheckpoint, match="compressed parts"):
        require_sound_file(tmp_path / "c.pth")


@pytest.mark.parametrize(("part", "what"), [(slice(0, 600), "it is cut off"), (slice(0, 0), "no file of torch.save")])
def test_the_reason_is_in_words(tmp_path, part, what):
    torch.save({"model": {"a": torch.zeros(9)}}, tmp_path / "whole.pth")
    (tmp_path / "a.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[part] or b"hello, I am a text")
    with pytest.raises(InvalidCheckpoint, match=f"a.pth was refused: it is .*{what.removeprefix('it is ')}"):
        require_sound_file(tmp_path / "a.pth")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02K\x01.", b"PK\x03\x04" + b"\0" * 50])
def test_other_files(tmp_path, content):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(InvalidCheckpoint, match="a.pth was refused"):
        require_sound_file(path)


@pytest.mark.parametrize(
    ("weights", "what"),
    [
        ({"w": "text"}, "'w' is a str"),
        ({"w": None}, "'w' is a NoneType"),
        ({"w": [1.0]}, "'w' is a list"),
        ({1: torch.ones(1)}, "named by a int"),
        ({"w": np.array(["a"])}, "an array of <U1"),
        ([torch.ones(1)], "holds a list"),
        (None, "holds a NoneType"),
        ({f"w{i}": None for i in range(9)}, "and 4 more"),
    ],
)
def test_entries_that_are_no_weights(weights, what):
    with pytest.raises(InvalidCheckpoint, match=f"checkpoint a.pth .*{what}"):
        require_weights(weights, "a.pth")


def test_trainer_state():
    state = checkpoint()["trainer"]
    _, optimizer = trained()
    require_trainer_state(state, optimizer, "a.pth")
    require_trainer_state(state["_trainer"], optimizer, "a.pth")
    other = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=1)
    larger = torch.optim.SGD([torch.zeros(p.numel() + 1) for p in optimizer.param_groups[0]["params"]], lr=1)
    groups = state["_trainer"]["optimizer"]["param_groups"]
    for wrong, run, what in [
        (None, optimizer, "no trainer state"),
        ({"iteration": "3"}, optimizer, "no trainer state"),
        ({"iteration": 3}, optimizer, "without that of the optimizer"),
        ({"iteration": 3, "_trainer": 1}, optimizer, "without that of the optimizer"),
        ({"iteration": 3, "optimizer": {"state": 1, "param_groups": []}}, optimizer, "no table"),
        ({"iteration": 3, "optimizer": {"state": {}, "param_groups": [1]}}, optimizer, "no groups"),
        ({"iteration": 3, "optimizer": {"state": {}, "param_groups": []}}, optimizer, "has 0 groups"),
        (
            {"iteration": 3, "optimizer": {"state": {0: 1}, "param_groups": groups}},
            optimizer,
            "a int for",
        ),
        (
            {"iteration": 3, "optimizer": {"state": {0: {"momentum_buffer": 5}}, "param_groups": groups}},
            optimizer,
            "a int as momentum_buffer of parameter 0",
        ),
        (
            {"iteration": 3, "optimizer": {"state": {}, "param_groups": [{"params": [0, 1, 2, 3]}]}},
            optimizer,
            "lacks lr",
        ),
        (state, other, "has 4 parameters in group 0, this run 2"),
        (state, larger, "momentum_buffer of shape"),
    ]:
        with pytest.raises(InvalidCheckpoint, match=f"a.pth.*{what}.*cannot be resumed"):
            require_trainer_state(wrong, run, "a.pth")


@pytest.mark.timeout(120)
@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.booleans(), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=5))
def test_damaged_bytes(tmp_path_factory, zipped, changes):
    """A damaged file is refused with its name, or torch reads or refuses it; whatever is read can be judged."""
    folder = tmp_path_factory.getbasetemp()
    source = folder / f"whole_{zipped}.pth"
    if not os.path.exists(source):
        save(source, {key: value for key, value in checkpoint().items() if key != "array"}, zipped)
    data = bytearray(source.read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    path = folder / "damaged.pth"
    path.write_bytes(bytes(data))
    try:
        require_sound_file(path)
    except InvalidCheckpoint as error:
        assert "damaged.pth" in str(error)
        return
    try:
        content = torch.load(path, weights_only=True)
    except Exception:  # torch's own refusal, of many types, which read_checkpoint turns into one
        return
    try:
        require_weights(content.get("model") if isinstance(content, dict) else content, path)
    except InvalidCheckpoint as error:
        assert "damaged.pth" in str(error)
