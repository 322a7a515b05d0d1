"""One way to open local paths, web addresses and ``detectron2://`` names."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from iopath.common.file_io import HTTPURLHandler, OneDrivePathHandler, PathHandler
from iopath.common.file_io import PathManager as _PathManager

PathManager = _PathManager()


class _WebHandler(HTTPURLHandler):
    """iopath's download into its cache folder, but with one message that names the remedy where it fails."""

    def _get_local_path(self, path: str, force: bool = False, cache_dir: str | None = None, **kwargs) -> str:
        try:
            return super()._get_local_path(path, force=force, cache_dir=cache_dir, **kwargs)
        except OSError as error:
            raise OSError(
                f"Could not download {path}: {error}. Check the network, or fetch the file elsewhere and give its "
                "local path instead (of weights: --weights or MODEL.WEIGHTS)."
            ) from error


class AliasHandler(PathHandler):
    """Base of handlers that stand for other addresses; a subclass says which (``resolve``)."""

    PREFIX = ""

    def resolve(self, name: str) -> str:
        """The full address of ``name``, which is the path without ``PREFIX``."""
        raise NotImplementedError

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        return PathManager.get_local_path(self.resolve(path.removeprefix(self.PREFIX)), force=force, **kwargs)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs) -> IO:
        return PathManager.open(self.resolve(path.removeprefix(self.PREFIX)), mode, buffering, **kwargs)


class Detectron2Handler(AliasHandler):
    """``detectron2://NAME``: a file that Detectron2's authors published."""

    PREFIX = "detectron2://"
    S3_DETECTRON2_PREFIX = "https://dl.fbaipublicfiles.com/detectron2/"

    def resolve(self, name: str) -> str:
        return self.S3_DETECTRON2_PREFIX + name


for _handler in (_WebHandler(), OneDrivePathHandler(), Detectron2Handler()):
    PathManager.register_handler(_handler)


@contextmanager
def atomic_open(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """Open a local file for writing that appears under its name only when the block ends without an error."""
    temporary = Path(f"{os.fspath(path)}.{os.getpid()}.tmp")
    try:
        with temporary.open(mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
