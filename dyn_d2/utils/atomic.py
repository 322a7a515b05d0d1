"""Files that are either whole or absent, also when the process is killed while writing."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside ``path`` that takes its name when the block ends without an error.

    Args:
        path: the final path; its folder is created when absent.
        mode: "w" (UTF-8 text) or "wb".
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; a result should have the permissions of any other new file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        for own in (error, error.__context__, error.__cause__):  # torch.save raises one of its own
            if isinstance(own, OSError) and own.errno and own.filename is None:
                own.filename = str(path)  # that of a full disk names no file
        raise


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Delete the temporary files that killed processes have left in ``folder``; nobody else may be writing there."""
    for path in Path(folder).glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any, indent: int | None = 1) -> None:
    """Write ``value`` as json, atomically."""
    with atomic_write(path) as file:
        json.dump(value, file, indent=indent)
        file.write("\n")
