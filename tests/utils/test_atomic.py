"""A file is whole or absent."""

import json
import os
import resource

import pytest
import torch

from dyn_d2.utils.atomic import atomic_write, remove_leftovers, write_json
from dyn_d2.utils.errors import of_machine


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "result.json"
    write_json(target, {"ap": 1})
    with pytest.raises(RuntimeError, match="power cut"), atomic_write(target) as file:
        file.write('{"ap":')
        raise RuntimeError("power cut")
    assert json.loads(target.read_text()) == {"ap": 1}
    assert os.listdir(tmp_path) == ["result.json"]


def test_what_killed_processes_left_is_removed(tmp_path):
    for name in (".model.pth.abc.tmp", "model.pth", ".hidden", "notes.tmp"):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "model.pth", "notes.tmp"]


def test_unwritable_value_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"value": object()})
    assert os.listdir(tmp_path) == []


def test_makes_folders_and_ordinary_permissions(tmp_path):
    target = tmp_path / "a" / "b.bin"
    with atomic_write(target, "wb") as file:
        file.write(b"\x00\x01")
    plain = tmp_path / "plain"
    plain.write_text("")
    assert target.read_bytes() == b"\x00\x01"
    assert target.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("save", [False, True], ids=["text", "torch"])
def test_a_full_disk_names_the_file_and_leaves_none(tmp_path, save) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "model.pth"
    path.write_text("the one before")
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises((OSError, RuntimeError)) as caught, atomic_write(path, "wb") as file:
            if save:
                torch.save({"weight": torch.zeros(100_000)}, file)
            else:
                file.write(bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "model.pth: make room. --resume" in of_machine(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"] and path.read_text() == "the one before"
