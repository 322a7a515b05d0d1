"""A folder that one process at a time may write to."""

import fcntl
import os
from pathlib import Path

from dyn_d2.utils.errors import UserError

_held: dict[str, int] = {}  # folder -> descriptor of its lock, open as long as this process lives


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
