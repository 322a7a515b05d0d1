"""What a data set was when a run read it: short texts that differ where its content does.

A run's checkpoints and the ``done.json`` of a stage carry them, so that nobody goes on with other data, or takes the
result of other data for theirs, without a word. Files of annotations count with their content, pictures with their
names and sizes, which is what can be looked at before each run; of label maps some count with their content.
"""

import hashlib
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dyn_d2.utils.files import files_below

from detectron2.data import DatasetCatalog, MetadataCatalog

Fingerprint = dict[str, str]  # part of a data set, or key that names a file -> what it was

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".npy")
READ_MAPS = 2000  # label maps of a folder whose content counts, evenly spread
# Where pictures are; "picture_root" in place of an "image_root" that holds other things too.
_OF_PICTURES = {"image_root", "image_dir", "picture_root"}
_LENGTH = 16  # hexadecimal digits that are kept of a hash


def file_hash(path: str | os.PathLike) -> str:
    """Hash of a file's content; a file of the same size and time is not read again.

    Raises:
        OSError: it cannot be read.
    """
    stat = os.stat(path)
    return _file_hash(os.path.realpath(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _file_hash(path: str, size: int, time: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:_LENGTH]


def weights_fingerprint(weights: str) -> str:
    """Of MODEL.WEIGHTS: the hash of a local file; "" for no weights, an address, or a file that is gone."""
    path = weights.partition("?")[0]
    return file_hash(path) if os.path.isfile(path) else ""


def data_fingerprint(name: str) -> Fingerprint:
    """What the registered data set ``name`` consists of now; parts that are not there are left out.

    Folders are looked at once until ``forget_fingerprints``. Sets that lie in memory, or whose metadata do not say
    where they lie, count with their records.
    """
    if name not in DatasetCatalog.list():
        return {}
    metadata = MetadataCatalog.get(name)
    files = [Path(path) for path in (metadata.get("list_files", None) or list)()]
    found = {path.name: file_hash(path) for path in files if path.is_file()}
    if division := metadata.get("division", None):  # with the whole it decides which images a part has
        found["held out"] = division
    sources = metadata.get("sources", None) or [metadata.get("part_of", None)]
    others = [source for source in sources if source and source != name]
    if others:
        return found | {f"{other}: {part}": text for other in others for part, text in data_fingerprint(other).items()}
    places = _places(metadata)
    found |= places
    if not places.keys() <= _OF_PICTURES:  # something there says what they show
        return found
    try:
        return found | {"records": records_hash(DatasetCatalog.get(name))}
    except FileNotFoundError:
        return found


def _places(metadata: Any) -> Fingerprint:
    """Of the files and folders that the metadata name."""
    values = {key: value for key, value in vars(metadata).items() if isinstance(value, str) and os.path.exists(value)}
    found: Fingerprint = {}
    for key, value in sorted(values.items()):
        if key.endswith("json_file") or key.endswith("_json"):
            found[os.path.basename(value)] = file_hash(value)
        elif key in ("sem_seg_root", "panoptic_root", "gt_dir"):
            found[key] = _folder(value, content=True)
        elif key in _OF_PICTURES and not (key == "image_root" and "picture_root" in values):
            found[key] = _folder(value)
        elif key == "dirname":  # as PASCAL VOC
            lists = Path(value, "ImageSets", "Main", f"{metadata.get('split', '')}.txt")
            found |= {lists.name: file_hash(lists)} if lists.is_file() else {}
            found["Annotations"] = _folder(os.path.join(value, "Annotations"), (".xml",), content=True, at_most=0)
            found["JPEGImages"] = _folder(os.path.join(value, "JPEGImages"))
    return found


def forget_fingerprints() -> None:
    """Look at folders anew from now on."""
    _folder.cache_clear()


@lru_cache(maxsize=256)
def _folder(root: str, suffixes: tuple[str, ...] = PICTURES, content: bool = False, at_most: int = READ_MAPS) -> str:
    """Names and sizes of the files below ``root``, and the content of some (``at_most``; 0 for all)."""
    files = sorted(_walk(root, suffixes))
    digest, total = hashlib.sha256(), 0
    every = max(1, -(-len(files) // at_most)) if at_most else 1
    for number, path in enumerate(files):
        size = os.path.getsize(path)
        total += size
        digest.update(f"{os.path.relpath(path, root)} {size}\n".encode(errors="surrogateescape"))
        if content and number % every == 0:
            digest.update(Path(path).read_bytes())
    return f"{len(files)} files, {total} bytes, {digest.hexdigest()[:_LENGTH]}"


def _walk(root: str, suffixes: tuple[str, ...]) -> Iterable[str]:
    return (str(path) for path in files_below(root) if path.name.lower().endswith(suffixes))


def records_hash(records: Iterable[dict[str, Any]]) -> str:
    """Hash of data set dicts, with the sizes of the files that they name; the folders of these do not count."""
    digest = hashlib.sha256()
    for record in records:
        _add(digest, record)
        name = record.get("file_name")
        if isinstance(name, str) and os.path.isfile(name):
            digest.update(str(os.path.getsize(name)).encode())
    return digest.hexdigest()[:_LENGTH]


def _add(digest: Any, value: Any, key: str = "") -> None:
    if isinstance(value, dict):
        for name in sorted(value, key=str):
            digest.update(f"{name}:".encode())
            _add(digest, value[name], str(name))
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}".encode())
        for part in value:
            _add(digest, part)
    elif isinstance(value, (np.ndarray, torch.Tensor)):
        array = np.ascontiguousarray(value)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    elif key.endswith("file_name") and isinstance(value, str):
        digest.update(os.path.basename(value).encode(errors="surrogateescape"))
    else:
        digest.update(value if isinstance(value, bytes) else repr(value).encode(errors="surrogateescape"))


def differences(old: Fingerprint, new: Fingerprint) -> list[str]:
    """``PART: OLD -> NEW`` of the parts that both have and that are not alike; what one of them lacks is no change."""
    return [f"{part}: {old[part]} -> {new[part]}" for part in sorted(old.keys() & new.keys()) if old[part] != new[part]]
