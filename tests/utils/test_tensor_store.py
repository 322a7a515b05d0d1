"""A folder of tensors that is bounded, shared, and never gives back what was damaged."""

import errno
import logging
import os
import tempfile
from pathlib import Path

import pytest
import torch

from dyn_d2.utils.tensor_store import TensorStore


def entry(value: float, rows: int = 16) -> dict[str, torch.Tensor]:
    return {
        "features": torch.full((rows, 32), value, dtype=torch.float16),
        "boxes": torch.full((rows, 4), value),
        "size": torch.tensor([3, 4]),
        "none": torch.zeros(0, 4),
    }


def test_what_was_written_is_read_mapped(tmp_path) -> None:
    store = TensorStore(tmp_path / "store", 1)
    assert store.read("a/b") is None and not store.has("a/b")
    assert store.write("a/b", entry(2.5)) and store.has("a/b")
    found = TensorStore(tmp_path / "store", 1).read("a/b")
    wanted = entry(2.5)
    assert found.keys() == wanted.keys()
    assert all(found[name].dtype == wanted[name].dtype and torch.equal(found[name], wanted[name]) for name in wanted)
    assert store.write("a/b", entry(1.0)) and store.read("a/b")["boxes"][0, 0] == 1.0
    assert found["boxes"][0, 0] == 2.5  # whoever has the old entry keeps it
    assert [path.name for path in (tmp_path / "store" / "a").iterdir()] == ["b.tensors"]  # nothing half-written


@pytest.mark.parametrize("damage", ["cut", "zeroed", "overwritten", "empty", "foreign", "moved", "header"])
def test_damaged_entries_are_said_and_made_anew(tmp_path, caplog, damage) -> None:
    store = TensorStore(tmp_path, 1)
    store.write("a", entry(1.0))
    path = tmp_path / "a.tensors"
    data = path.read_bytes()
    changed = {
        "cut": data[:-64],
        "zeroed": data[:-512] + bytes(512),
        "overwritten": data[:-100] + b"x" + data[-99:],
        "empty": b"",
        "foreign": b"PK\x03\x04" + data[4:],
        "header": data[:30] + b"\xff" + data[31:],
    }
    if damage == "moved":
        path.rename(tmp_path / "b.tensors")
        assert store.read("b") is None
    else:
        if damage == "zeroed":  # of ones, not of zeros
            assert data[-512:] != bytes(512)
        path.write_bytes(changed[damage])
        assert store.read("a") is None
    assert "made anew" in caplog.text
    assert store.write("a", entry(3.0)) and store.read("a")["boxes"][0, 0] == 3.0


def test_what_was_not_used_for_longest_goes_first(tmp_path, caplog) -> None:
    size = 16 * 32 * 2 + 16 * 16 + 1000
    store = TensorStore(tmp_path, 6 * size / 1e9)
    for number in range(4):
        store.write(str(number), entry(number))
        os.utime(tmp_path / f"{number}.tensors", (number, number))
    other = TensorStore(tmp_path, 6 * size / 1e9)
    other.read("0")  # used now
    for number in range(4, 9):
        other.write(str(number), entry(number))
    left = {path.stem for path in tmp_path.glob("*.tensors")}
    assert "0" in left and "8" in left and not {"1", "2"} & left
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 6 * size
    for number in range(9, 16):
        other.write(str(number), entry(number))
    assert caplog.text.count("less than this run needs") == 1


def test_an_entry_beyond_the_bound_is_not_kept(tmp_path, caplog) -> None:
    store = TensorStore(tmp_path, 1e-6)
    assert not store.write("a", entry(1.0)) and not store.write("b", entry(1.0))
    assert caplog.text.count("holds not even one entry") == 1 and not list(tmp_path.iterdir())


def test_a_full_disk_is_said_once(tmp_path, caplog, monkeypatch) -> None:
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = TensorStore(tmp_path / "store", 1)
    store.write("a", entry(1.0))
    monkeypatch.setattr(tempfile, "mkstemp", full)
    assert not store.write("b", entry(1.0)) and not store.write("c", entry(1.0))
    assert caplog.text.count("No space left") == 1
    assert store.read("a") is not None


def test_leftovers_of_killed_processes_go(tmp_path) -> None:
    old, new = tmp_path / ".a.x.tmp", tmp_path / ".b.x.tmp"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    TensorStore(tmp_path, 1).write("a", entry(1.0))
    assert not old.exists() and new.exists()


def _write_many(folder: Path, process: int) -> None:
    store = TensorStore(folder, 1)
    for turn in range(20):
        for number in range(8):
            assert store.write(str(number), entry(100 * process + turn, rows=200))
            found = store.read(str(number))
            assert found is not None and bool((found["boxes"] == found["boxes"][0, 0]).all())


def test_two_processes_write_the_same_entries(tmp_path, caplog) -> None:
    context = torch.multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_many, args=(tmp_path, seed)) for seed in range(2)]
    for worker in workers:
        worker.start()
    with caplog.at_level(logging.WARNING):
        store = TensorStore(tmp_path, 1)
        while any(worker.is_alive() for worker in workers):
            for number in range(8):
                found = store.read(str(number))
                assert found is None or bool((found["boxes"] == found["boxes"][0, 0]).all())
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert "made anew" not in caplog.text
    assert all(store.read(str(number)) is not None for number in range(8))
