"""The checkpoint files of an output directory."""

import os
import re
from pathlib import Path

import torch

TAG = "last_checkpoint"  # the file that names the one to go on from
FINAL = "model_final.pth"


def is_whole(path: str | os.PathLike) -> bool:
    """Whether a checkpoint of ours is there and can be opened: its end is there, and its list of tensors is sound. The
    tensors themselves are not read."""
    from .checkpointer import ARRAY_PARTS

    try:
        with torch.serialization.safe_globals(ARRAY_PARTS):
            content = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except Exception:  # torch raises a different type for each way in which a file can be broken
        return False
    return isinstance(content, dict) and "model" in content


def periodic(folder: str | os.PathLike) -> list[Path]:
    """``model_ITERATION.pth`` of a folder, the newest first."""
    found = [path for path in Path(folder).glob("model_*.pth") if re.fullmatch(r"model_\d+", path.stem)]
    return sorted(found, key=lambda path: int(path.stem.removeprefix("model_")), reverse=True)


def tagged(folder: str | os.PathLike) -> Path | None:
    """The checkpoint that a run in ``folder`` goes on from; None where there is none.

    Where the one that was noted is gone, it is the newest that is there.
    """
    tag = Path(folder, TAG)
    if not tag.is_file():
        return None
    noted = Path(folder, tag.read_text(encoding="utf-8", errors="replace").strip("\0 \n"))
    if os.path.isfile(noted):  # that of Path raises where the name is none
        return noted
    return next(iter(periodic(folder)), None)


def no_file(path: str) -> str:
    """What is wrong with the path of a checkpoint that is no file; of a folder, which of its files may be meant."""
    if not os.path.isdir(path):
        return f"checkpoint {path} does not exist: check the path."
    final = Path(path, FINAL)
    meant = final if final.is_file() else next(iter(periodic(path)), None)
    return f"checkpoint {path} is a folder: give {f'its file {meant}' if meant else 'a file, it holds no checkpoint'}."


def one_before(path: str | os.PathLike) -> Path | None:
    """The newest whole checkpoint beside ``path``."""
    return next((other for other in periodic(Path(path).parent) if other != Path(path) and is_whole(other)), None)
