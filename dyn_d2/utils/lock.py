"""What one process at a time may do: write to a folder, make a file.

The locks are filelock's, of the operating system (flock, or that of Windows): they are gone with the process.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import UserError

_held: dict[str, FileLock] = {}  # folder -> its lock, as long as this process holds it
_LOCK, _OWNER = ".lock", ".lock_owner"  # another than the lock, which who asks for it may empty


def _lock(path: str | os.PathLike) -> FileLock:
    return FileLock(os.fspath(path), thread_local=False)


@contextmanager
def one_at_a_time(path: str | os.PathLike) -> Iterator[None]:
    """Only one process is inside, others wait. The lock of a process that dies is gone with it.

    Args:
        path: of the lock, a file that stays.
    """
    with _lock(path):
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
    lock, owner = _lock(os.path.join(key, _LOCK)), Path(key, _OWNER)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        number = ""
        with suppress(OSError):
            number = owner.read_text(encoding="utf-8").strip()
        raise FolderInUse(
            f"process {number or '(unknown)'} is writing to {folder}: wait until it ends, stop it, or choose another "
            "OUTPUT_DIR."
        ) from None
    except (OSError, NotImplementedError):
        if not os.access(key, os.W_OK):
            raise
        return  # a file system without locks
    _held[key] = lock
    owner.write_text(f"{os.getpid()}\n", encoding="utf-8")


@contextmanager
def released_after() -> Iterator[None]:
    """Folders that this process claims inside the block are free again after it."""
    before = set(_held)
    try:
        yield
    finally:
        for key in _held.keys() - before:
            _held.pop(key).release()


def wait_until_free(folder: str | os.PathLike, seconds: float) -> None:
    """Return when no other process holds ``folder``, at the latest after ``seconds``: the children of a process that
    was killed keep its lock for the moments that they need to end."""
    deadline = time.monotonic() + seconds
    while is_held(folder) and time.monotonic() < deadline:
        time.sleep(0.5)


def is_held(folder: str | os.PathLike) -> bool:
    """Whether some process, this one or another, holds ``folder``."""
    if os.path.realpath(folder) in _held:
        return True
    path = Path(folder, _LOCK)
    if not path.is_file():  # nobody has trained there
        return False
    lock = _lock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except (OSError, NotImplementedError):  # a file system without locks, or a folder of others
        return False
    lock.release()
    return False
