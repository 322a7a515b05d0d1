"""A folder of tensors that were expensive to compute: one file an entry, memory-mapped, bounded, shared by processes.

An entry is written beside its name and takes it in one step, so that a reader finds it whole or not at all. Nothing is
ever changed in place: a file that is removed or replaced while another process has it mapped stays readable there.
"""

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_MAGIC = b"DYNTENS1"
_ALIGN = 64  # bytes; every tensor starts at a multiple of it
_DTYPES = {str(dtype): dtype for dtype in (torch.float16, torch.float32, torch.int64)}
_RESCAN = 60.0  # seconds after which the folder is looked through again, for what other processes have written
_LEFTOVER = 3600.0  # seconds after which a file that is still being written is that of a process that was killed
_ROOM = 0.9  # how full the folder is after old entries have gone

Tensors = dict[str, Tensor]


def in_16_bits(values: Tensor) -> Tensor:
    """``values`` as they are kept: in float16, where its range holds them all."""
    rounded = values.half()
    return rounded if bool(rounded.isfinite().all()) else values


class TensorStore:
    """Entries are tensors by name under a key, which has to be usable as a path below the folder.

    Where the folder cannot be written to (a full disk), nothing is kept any more, and the log says so once.

    Attributes:
        folder: where they lie; made when the first entry is written.
        limit_gb: what all may take, in 10^9 bytes.
    """

    def __init__(self, folder: str | os.PathLike, limit_gb: float, limit_key: str = "FEW_SHOT.CACHE_GB") -> None:
        """
        Args:
            limit_gb: what all entries together may take, in 10^9 bytes; beyond, those go that were not used longest.
            limit_key: the config key that says so, for messages.
        """
        self._limit_key = limit_key
        self.folder, self.limit_gb, self._limit = Path(folder), limit_gb, int(limit_gb * 1e9)
        self._total, self._scanned = 0, -float("inf")
        self._used: set[str] = set()
        self._said: set[str] = set()

    @property
    def usable(self) -> bool:
        """Whether new entries can be kept, as far as is known."""
        return not {"small", "disk"} & self._said

    def has(self, key: str) -> bool:
        """Whether there is an entry; it may still be damaged."""
        return self._path(key).is_file()

    def read(self, key: str) -> Tensors | None:
        """The entry, mapped rather than read, and used now; None where there is none that can be used.

        A damaged file is said in the log, and the next ``write`` replaces it. The tensors must not be changed.
        """
        path = self._path(key)
        try:
            size = path.stat().st_size
            if size < len(_MAGIC) + 8:
                raise ValueError("too short")
            # Private: what is mapped keeps no file descriptor open, and there may be thousands of entries.
            data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
            found = _parse(data, key)
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            if path.exists():  # else another process has just removed it
                logger.warning(f"{path} is damaged or of something else ({error}): it is made anew")
            return None
        with suppress(OSError):  # the file of another user, or a folder that can only be read
            os.utime(path)
        self._used.add(key)
        return found

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> bool:
        """Keep an entry, in place of an earlier one; False where that cannot be."""
        header, blocks = _layout(key, tensors)
        size = len(header) + sum(len(block) for block in blocks)
        if size > self._limit:
            self._say("small", f"{self._limit_key} {self._limit / 1e9:g} holds not even one entry of {size} bytes")
            return False
        if not self.usable:
            return False
        path = self._path(key)
        try:
            self._make_room(size)
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(header)
                    for block in blocks:
                        file.write(block)
                os.chmod(temporary, 0o644)
                os.replace(temporary, path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            self._say("disk", f"{self.folder} cannot be written to ({error.strerror or error}): computing goes on")
            return False
        self._total += size
        self._used.add(key)
        return True

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.tensors"

    def _say(self, what: str, message: str) -> None:
        if what not in self._said:
            self._said.add(what)
            logger.warning(f"{message}; this is said once")

    def _make_room(self, size: int) -> None:
        """Remove the oldest entries where ``size`` more bytes would be too many."""
        if self._total + size <= self._limit and time.monotonic() - self._scanned < _RESCAN:
            return
        entries = sorted(_entries(self.folder))
        self._total, self._scanned = sum(length for _, length, _ in entries), time.monotonic()
        if self._total + size <= self._limit:
            return
        for _, length, path in entries:
            if self._total + size <= self._limit * _ROOM:
                break
            Path(path).unlink(missing_ok=True)
            self._total -= length
            if os.path.relpath(path, self.folder).removesuffix(".tensors") in self._used:
                self._say(
                    "turn", f"{self._limit_key} {self._limit / 1e9:g} is less than this run needs: entries go and come"
                )


def _entries(folder: Path) -> Iterator[tuple[float, int, str]]:
    """(time of the last use, bytes, path) of all; what killed processes have left is removed."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            try:
                stat = os.stat(path)
            except OSError:  # another process was faster
                continue
            if name.endswith(".tensors"):
                yield stat.st_mtime, stat.st_size, path
            elif name.endswith(".tmp") and time.time() - stat.st_mtime > _LEFTOVER:
                Path(path).unlink(missing_ok=True)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGN)


def _layout(key: str, tensors: Mapping[str, Tensor]) -> tuple[bytes, list[bytes]]:
    """The head of a file and the blocks that follow it."""
    blocks, described, at = [], {}, 0
    for name, tensor in tensors.items():
        values = tensor.detach().cpu().contiguous()
        block = _padded(values.reshape(-1).view(torch.uint8).numpy().tobytes())
        described[name] = [str(values.dtype), list(values.shape), at]
        blocks.append(block)
        at += len(block)
    check = sum(_check(np.frombuffer(block, np.uint8)) for block in blocks) % 2**64
    head = json.dumps({"key": key, "tensors": described, "bytes": at, "check": check}).encode()
    start = _padded(_MAGIC + len(head).to_bytes(8, "little") + head)
    return start, blocks


def _check(data: np.ndarray) -> int:
    """The sum of the 64-bit words: as fast as memory, and different for whatever is cut, zeroed or overwritten."""
    return int(data.view(np.uint64).sum(dtype=np.uint64))


def _parse(data: Tensor, key: str) -> Tensors:
    """
    Raises:
        ValueError, KeyError, TypeError: it is no entry under this key.
    """
    raw = data.numpy()
    if raw[: len(_MAGIC)].tobytes() != _MAGIC:
        raise ValueError("no such file")
    length = int.from_bytes(raw[len(_MAGIC) : len(_MAGIC) + 8].tobytes(), "little")
    start = len(_MAGIC) + 8 + length
    if start > len(raw):
        raise ValueError("cut off")
    head = json.loads(raw[len(_MAGIC) + 8 : start].tobytes())
    start += -start % _ALIGN
    if head["key"] != key:
        raise ValueError(f"it is that of {head['key']}")
    if len(raw) != start + head["bytes"] or _check(raw[start:]) != head["check"]:
        raise ValueError("its content has changed")
    found = {}
    for name, (dtype, shape, at) in head["tensors"].items():
        kind = _DTYPES[dtype]
        count = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        found[name] = data[start + at : start + at + count].view(kind).reshape(shape)
    return found
