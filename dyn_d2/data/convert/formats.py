"""Which format annotations have, and its reader."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path

from dyn_d2.data.validity.coco import DataError

from .boxes import read_coco, read_voc, read_yolo
from .items import Found
from .other import DATUMARO, read_datumaro
from .tools import read_cvat, read_label_studio, read_labelme

# --from -> (reader of a path and of class names, what it is).
READERS: dict[str, tuple[Callable[[Path, Sequence[str]], Found], str]] = {
    "voc": (read_voc, "Pascal VOC's xml, one an image (LabelImg)"),
    "yolo": (read_yolo, "a YOLO folder: a txt an image"),
    "labelme": (read_labelme, "LabelMe's json, one an image"),
    "cvat": (read_cvat, "CVAT for images 1.1: annotations.xml"),
    "labelstudio": (read_label_studio, "Label Studio's json export"),
    "coco": (read_coco, "COCO's format, as Roboflow and others write it"),
}
_YOLO_SIGNS = ("data.yaml", "dataset.yaml", "classes.txt", "obj.names", "labels")


def read(path: Path, kind: str = "", classes: Sequence[str] = ()) -> Found:
    """The annotations of a file or folder.

    Args:
        kind: a key of READERS, "datumaro:FORMAT", or "" to find out.
        classes: names in the order of their numbers, for YOLO folders without.

    Raises:
        FileNotFoundError: no such path.
        DataError: it is of no known format, or damaged.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if kind.startswith(DATUMARO):
        return read_datumaro(path, kind.removeprefix(DATUMARO))
    kind = kind or kind_of(path)
    if kind not in READERS:
        raise DataError(f"--from {kind} is unknown: use {', '.join(READERS)} or {DATUMARO}FORMAT.")
    found = READERS[kind][0](path, classes)
    if not found.items:
        raise DataError(f"{path} holds no annotated image, read as {READERS[kind][1]}.")
    return found


def kind_of(path: Path) -> str:
    """A key of READERS.

    Raises:
        DataError: none fits.
    """
    if path.is_file():
        kind = _kind_of_file(path)
    else:
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in (".xml", ".json") and p.is_file())
        first = {suffix: next((p for p in files if p.suffix.lower() == suffix), None) for suffix in (".json", ".xml")}
        kinds = [_kind_of_file(file) for file in first.values() if file]
        kind = next((k for k in kinds if k), "")
        if not kind and (any((path / sign).exists() for sign in _YOLO_SIGNS) or next(path.rglob("*.txt"), None)):
            kind = "yolo"
    if not kind:
        known = "; ".join(f"{name} ({text})" for name, (_, text) in READERS.items())
        raise DataError(f"{path} looks like none of: {known}. Say by --from which it is.")
    return kind


def _kind_of_file(path: Path) -> str:
    if path.suffix.lower() == ".xml":
        try:
            root = ET.parse(path).getroot().tag
        except (ET.ParseError, LookupError, ValueError) as error:
            raise DataError(f"{path} is no xml: {error}") from error
        return {"annotations": "cvat", "annotation": "voc"}.get(root, "")
    if path.suffix.lower() in (".txt", ".yaml", ".yml"):
        return "yolo"
    content = load_json(path)
    if isinstance(content, list):
        return "labelstudio"
    if "shapes" in content:
        return "labelme"
    return "coco" if "images" in content else ""


def load_json(path: Path) -> dict | list:
    """Whatever json a file holds.

    Raises:
        DataError: it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid json: {str(error)[:200]}") from error
    if not isinstance(content, dict | list):
        raise DataError(f"{path} is no json of annotations.")
    return content
