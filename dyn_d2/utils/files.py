"""Looking for files."""

import os
from collections.abc import Iterator
from pathlib import Path


def files_below(root: str | os.PathLike) -> list[Path]:
    """All files below a folder, sorted; links to folders are followed, but for those that lead back to where they are;
    folders that cannot be read are passed over.

    Args:
        root: need not exist.
    """
    return sorted(_walk(os.fspath(root), frozenset()))


def _walk(folder: str, above: frozenset[str]) -> Iterator[Path]:
    """
    Args:
        above: the real paths of the folders that the way here has passed.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = list(os.scandir(folder))
    except OSError:  # not there, or not ours to read
        return
    for entry in entries:
        if _is_dir(entry):
            yield from _walk(entry.path, above | {real})
        else:
            yield Path(entry.path)


def _is_dir(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
