"""YOLO folders: images, and beside them, or in ``labels`` in place of ``images``, a txt each.

A line is ``class x y width height`` (the middle of the box), or ``class x1 y1 x2 y2 x3 y3 ...`` (a polygon), all as
shares of the sides. An image without a txt shows nothing. The classes are the ``names`` of data.yaml, or the lines of
classes.txt. Layouts of Ultralytics, Roboflow, LabelImg and Label Studio are such.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml
from PIL import Image

from dyn_d2.data.semantic.label_maps import IMAGE_SUFFIXES
from dyn_d2.data.validity.coco import DataError
from dyn_d2.data.validity.images import opening_error
from dyn_d2.utils.atomic import write_json
from dyn_d2.utils.files import files_below

_YAMLS = ("data.yaml", "dataset.yaml", "data.yml")
_TXTS = ("classes.txt", "obj.names", "labels/classes.txt", "predefined_classes.txt")
_VAL = ("val", "valid")
OVER = 0.01  # how far a share may lie outside of [0, 1], as rounding makes it; such boxes are cut to the image


def read_yaml_of(root: Path) -> dict[str, Any]:
    """The data.yaml of a folder; {} where there is none.

    Raises:
        DataError: it is damaged, or of poses, whose lines would be read as polygons.
    """
    path = next((root / name for name in _YAMLS if (root / name).is_file()), None)
    if path is None:
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no yaml: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is no mapping with names, train and val.")
    if content.get("kpt_shape"):
        raise DataError(
            f"{path} has kpt_shape: its labels are poses, which dyn_d2 does not know. For their boxes alone keep the "
            "first five numbers of each line, and take kpt_shape out."
        )
    return content


def parts_of_yaml(root: Path) -> tuple[str, ...]:
    """Parts that data.yaml names: those of train and test, or where it has no test, its val is reported; with both,
    val is to choose on."""
    content = read_yaml_of(root)
    has_val, has_test = any(content.get(key) for key in _VAL), bool(content.get("test"))
    found = {"train": bool(content.get("train")), "val": has_val and has_test, "test": has_val or has_test}
    return tuple(part for part, there in found.items() if there)


def names_classes(root: Path) -> bool:
    """Whether a folder says what its classes are called."""
    return bool(read_yaml_of(root).get("names")) or any((root / name).is_file() for name in _TXTS)


def class_names(root: Path) -> tuple[str, ...]:
    """Names of the classes in a folder.

    Raises:
        DataError: it does not tell.
    """
    names = read_yaml_of(root).get("names")
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise DataError(f"{root}: names of data.yaml have the numbers {sorted(names)[:5]}, not 0, 1, ...")
        names = [names[number] for number in range(len(names))]
    if not names:
        path = next((root / name for name in _TXTS if (root / name).is_file()), None)
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()] if path else []
        while names and not names[-1]:
            names.pop()
    if not names or not all(isinstance(name, str | int) and str(name).strip() for name in names):
        raise DataError(
            f"{root} does not name its classes: give DATASETS.CUSTOM.CLASSES, the names in the order of their numbers "
            "(data.yaml with names, or classes.txt, would do too)."
        )
    if len(set(map(str, names))) < len(names):
        raise DataError(f"{root} gives a class name twice: {', '.join(map(str, names))}.")
    return tuple(map(str, names))


def source_of(root: Path, part: str, given: str) -> Path:
    """The folder of images, or the list of them, of a part.

    Raises:
        DataError, FileNotFoundError: data.yaml does not name it, or it is not there.
    """
    if given:
        path = root / Path(given).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"DATASETS.CUSTOM.{part.upper()}: {path} does not exist.")
        return path
    content = read_yaml_of(root)
    keys = {"train": ("train",), "val": _VAL, "test": ("test", *_VAL)}[part]
    value = next((content[key] for key in keys if content.get(key)), None)
    if not isinstance(value, str):
        what = f"a list ({value})" if value else "nothing"
        raise DataError(
            f"{root}: data.yaml has {what} for {part}: give DATASETS.CUSTOM.{part.upper()}, a folder of images."
        )
    own = Path(str(content.get("path") or ""))
    tried = [root / own / value, root / value, root / value.replace("../", ""), root / own.name / value]
    found = next((path for path in tried if path.exists()), None)
    if found is None:
        places = ", ".join(dict.fromkeys(map(str, tried)))
        remedy = f"give DATASETS.CUSTOM.{part.upper()}, a folder of images such as valid/images"
        if part == "test" and content.get("test") and any(content.get(key) for key in _VAL):
            remedy += ", or take test out of data.yaml, so that val is tested on"
        raise FileNotFoundError(f"{root}: data.yaml names {value} for {part}, but none of {places} exists: {remedy}.")
    return found / "images" if not images_in(found) and (found / "images").is_dir() else found


def images_in(source: Path) -> list[Path]:
    """The images below a folder, sorted, or those of a list."""
    if source.is_file():
        text = source.read_text(encoding="utf-8-sig")
        names = [line.strip() for line in text.splitlines() if line.strip()]
        return [_listed(source, name) for name in names]
    return [path for path in files_below(source) if path.suffix.lower() in IMAGE_SUFFIXES]


def _listed(source: Path, name: str) -> Path:
    """An image of a list, whose paths may be of another machine."""
    plain = Path(*PureWindowsPath(name).parts) if "\\" in name else Path(name)
    for path in (source.parent / plain, source.parent / "images" / plain.name, source.parent / plain.name):
        if path.is_file():
            return path
    raise DataError(f"{source} lists {name}, which is not there: paths start at {source.parent}.")


def label_file(image: Path) -> Path:
    """Where the txt of an image is, or would be."""
    parts = list(image.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            other = Path(*parts[:place], "labels", *parts[place + 1 :]).with_suffix(".txt")
            if other.is_file() or other.parent.is_dir():
                return other
            break
    return image.with_suffix(".txt")


def json_of(name: str, source: Path, classes: Sequence[str]) -> Path:
    """A json in COCO's format of a YOLO folder, in the cache; the one that is there where no file has changed.

    Args:
        name: of the data set, and of the json.

    Raises:
        DataError: a line or an image is damaged; names file and line.
    """
    images = images_in(source)
    if not images:
        raise DataError(f"{source} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
    labels = [label_file(image) for image in images]
    if not any(label.is_file() for label in labels):
        raise DataError(
            f"none of the {len(images)} images of {source} has labels: {labels[0]} and so on do not exist. They lie "
            "beside the images, or in labels/ where the images lie in images/."
        )
    digest = hashlib.sha256(repr((source.resolve(), tuple(classes))).encode())
    for path in (*images, *labels):
        stat = path.stat() if path.is_file() else None
        digest.update(f"{path} {(stat.st_size, stat.st_mtime_ns) if stat else None}\n".encode(errors="surrogateescape"))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dyn_d2" / "yolo"
    json_file = cache / digest.hexdigest()[:16] / f"{name}.json"
    if not json_file.is_file():
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(json_file, coco_of(images, labels, classes), indent=None)
    return json_file


def coco_of(images: Sequence[Path], labels: Sequence[Path], classes: Sequence[str]) -> dict[str, Any]:
    """The content of a json in COCO's format: absolute paths of images, ids from 1.

    Args:
        labels: the txt of each image, which may be missing.
    """
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (image, label) in enumerate(zip(images, labels, strict=True), 1):
        width, height = image_size(image)
        records.append({"id": number, "file_name": os.path.abspath(image), "width": width, "height": height})
        lines = label.read_text(encoding="utf-8-sig").splitlines() if label.is_file() else []
        for line, text in enumerate(lines, 1):
            if text.strip():
                try:
                    found = _object(text.split(), len(classes), width, height)
                except ValueError as error:
                    raise DataError(f"{label}, line {line}: {error}.") from error
                annotations.append({"id": len(annotations) + 1, "image_id": number, "iscrowd": 0, **found})
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, 1)]
    return {"images": records, "annotations": annotations, "categories": categories}


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image after its EXIF rotation.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (image.size[1], image.size[0]) if turned else image.size
    except Exception as error:  # Pillow's decoders raise many types
        raise DataError(f"{path} cannot be opened: {opening_error(path, error)}") from error


def _object(words: Sequence[str], classes: int, width: int, height: int) -> dict[str, Any]:
    """Category, box, area and, of a polygon, segmentation of a line."""
    try:
        number, shares = int(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        raise ValueError(f"{' '.join(words)[:80]!r} is not a class number and numbers") from None
    if not 0 <= number < classes:
        raise ValueError(f"class {number} is none of the {classes}, which count from 0")
    if not (len(shares) == 4 or len(shares) >= 6 and len(shares) % 2 == 0):
        raise ValueError(f"{len(shares)} numbers after the class: a box has 4, a polygon 6 or more, in pairs")
    outside = [share for share in shares if not -OVER <= share <= 1 + OVER]
    if outside:
        raise ValueError(f"{outside[0]:g} is no share of a side, from 0 to 1: are these pixels")
    polygon = []
    if len(shares) == 4:
        x, y, w, h = shares
        sides = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    else:
        cut = [min(max(share, 0.0), 1.0) for share in shares]
        polygon = [share * (height if i % 2 else width) for i, share in enumerate(cut)]
        sides = [min(cut[::2]), min(cut[1::2]), max(cut[::2]), max(cut[1::2])]
    x0, y0, x1, y1 = (min(max(side, 0.0), 1.0) * (height if i % 2 else width) for i, side in enumerate(sides))
    box = [x0, y0, x1 - x0, y1 - y0]
    found = {"category_id": number + 1, "bbox": box, "area": box[2] * box[3]}
    return found | {"segmentation": [polygon]} if polygon else found
