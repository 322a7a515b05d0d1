"""Looking for files."""

import os
from collections.abc import Iterator
from pathlib import Path


def files_below(root: str | os.PathLike) -> list[Path]:
    """All files below a folder, sorted; links to folders are followed, but for those that lead back to where they are.

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
    if real in above or not os.path.isdir(folder):
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(entry.path, above | {real})
            else:
                yield Path(entry.path)
