"""The checkpoint files of an output directory."""

import difflib
import os
import re
from pathlib import Path

import torch

TAG = "last_checkpoint"  # the file that names the one to go on from
FINAL = "model_final.pth"
ZOO = "zoo:"  # before the names of models that come with dyn_d2
SUFFIXES = (".pth", ".pkl", ".pt", ".pyth", ".weights")


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
    """What is wrong with the path of a checkpoint that is no file: which of a folder's files may be meant, or which
    files or folders are nearest to what is not there."""
    if path.startswith(ZOO):
        return f"{path} names a packed model, for predictors alone (dyn-d2 demo): here a checkpoint's file is needed."
    if os.path.isdir(path):
        final = Path(path, FINAL)
        meant = final if final.is_file() else next(iter(periodic(path)), None)
        wanted = f"its file {meant}" if meant else "a file, it holds no checkpoint"
        return f"checkpoint {path} is a folder: give {wanted}."
    missing = Path(path)
    while not os.path.isdir(missing.parent):
        missing = missing.parent
    folder, is_file = missing.parent, missing == Path(path)
    there = [
        name for name in _names(folder) if (Path(name).suffix in SUFFIXES if is_file else (folder / name).is_dir())
    ]
    near = [str(folder / name) for name in difflib.get_close_matches(missing.name, there, 3, 0.0 if is_file else 0.5)]
    if is_file and not near:
        return f"checkpoint {path} does not exist, and its folder holds no other: check the path."
    reason = "nearest in its folder" if is_file else f"there is no folder {missing}" + ("; nearest" if near else "")
    return f"checkpoint {path} does not exist: {reason}{': ' if near else ''}{', '.join(near)}."


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:  # one may pass through a folder without reading it
        return []


def one_before(path: str | os.PathLike) -> Path | None:
    """The newest whole checkpoint beside ``path``."""
    return next((other for other in periodic(Path(path).parent) if other != Path(path) and is_whole(other)), None)
