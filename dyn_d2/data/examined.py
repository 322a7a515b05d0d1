"""Images that were opened and found sound, so that the next cell of a table does not open them once more."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from dyn_d2.utils.atomic import write_json

from .check import ImageFile


class Examined:
    """A file that lists hashes of (path, size and time of the file, size of the image). Whoever writes last wins: what
    is lost of the others is examined again."""

    def __init__(self, folder: str | os.PathLike) -> None:
        self._path = Path(folder) / "examined_images.json"
        try:
            self._known = {text for text in json.loads(self._path.read_text(encoding="utf-8")) if isinstance(text, str)}
        except (OSError, ValueError, TypeError):  # none yet, or damaged
            self._known = set()

    def others(self, files: Iterable[ImageFile]) -> list[ImageFile]:
        """Those that were not examined, or are not what they were."""
        return [file for file in files if _hash(file) not in self._known]

    def add(self, files: Iterable[ImageFile]) -> None:
        """They are sound. Where the file cannot be written, they are examined again."""
        found = {text for file in files if (text := _hash(file))}
        if found <= self._known:
            return
        self._known |= found
        try:
            write_json(self._path, sorted(self._known), indent=None)
        except OSError:
            pass


def _hash(file: ImageFile) -> str:
    path, _, width, height = file
    try:
        stat = os.stat(path)
    except OSError:
        return ""
    text = f"{os.path.realpath(path)} {stat.st_size} {stat.st_mtime_ns} {width} {height}"
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
