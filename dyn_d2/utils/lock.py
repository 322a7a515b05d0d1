"""What one process at a time may do: write to a folder, make a file."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError

_held: dict[str, int] = {}  # folder -> descriptor of its lock, which is open as long as it is held


@contextmanager
def one_at_a_time(path: str | os.PathLike) -> Iterator[None]:
    """Only one process is inside, others wait. The lock of a process that dies is gone with it.

    Args:
        path: of the lock, a file that stays.
    """
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class FolderInUse(UserError):
    """Another living process has the folder."""


def hold_folder(folder: str | os.PathLike) -> None:
    """Claim ``folder`` for this process until it ends, however it ends; claiming it again does nothing.

    Raises:
        FolderInUse: another process holds it. Its number is in the message.
    """
    key = os.path.realpath(folder)
    if key in _held:
        return
    Path(key).mkdir(parents=True, exist_ok=True)
    path = os.path.join(key, ".lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 32).decode().strip()
        os.close(descriptor)
        raise FolderInUse(
            f"process {owner or '(unknown)'} is writing to {folder}: wait until it ends, stop it, or choose another "
            "OUTPUT_DIR."
        ) from None
    except OSError:  # a file system without locks
        os.close(descriptor)
        return
    os.truncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    _held[key] = descriptor


@contextmanager
def released_after() -> Iterator[None]:
    """Folders that this process claims inside the block are free again after it."""
    before = set(_held)
    try:
        yield
    finally:
        for key in _held.keys() - before:
            os.close(_held.pop(key))


def wait_until_free(folder: str | os.PathLike, seconds: float) -> None:
    """Return when no other process holds ``folder``, at the latest after ``seconds``: the children of a process that
    was killed keep its lock for the moments that they need to end."""
    deadline = time.monotonic() + seconds
    while is_held(folder) and time.monotonic() < deadline:
        time.sleep(0.5)


def is_held(folder: str | os.PathLike) -> bool:
    """Whether some process, this one or another, holds ``folder``."""
    try:
        with open(os.path.join(folder, ".lock")) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # nobody has trained there, or a file system without locks
        return False
    return False
