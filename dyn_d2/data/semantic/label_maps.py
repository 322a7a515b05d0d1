"""Label maps: 8-bit grey PNG files with one class a pixel, and the one mapping that makes them from published ids.

Shape shorthand: H, W - height and width of the image; K - number of classes.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dyn_d2.data.validity.coco import DataError
from dyn_d2.data.validity.images import opening_error
from dyn_d2.utils.atomic import atomic_write

Record = dict[str, Any]

IGNORE = 255
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


class LabelTable:
    """What each published id means: a class, or nothing that counts.

    >>> table = LabelTable({0: IGNORE, 7: 0, 8: 1})
    """

    def __init__(self, classes: Mapping[int, int]) -> None:
        """
        Args:
            classes: published id (0 or more) -> class (0 to 254) or ``IGNORE``. Ids that are not there are errors.

        Raises:
            ValueError: an id or class is out of range.
        """
        wrong = {raw: number for raw, number in classes.items() if raw < 0 or not 0 <= number <= IGNORE}
        if wrong:
            raise ValueError(f"Ids from 0 to classes from 0 to {IGNORE - 1} or {IGNORE} are possible, not {wrong}.")
        self._table = np.full(max(classes, default=0) + 1, -1, np.int16)
        for raw, number in classes.items():
            self._table[raw] = number

    def apply(self, ids: np.ndarray, source: str | os.PathLike) -> np.ndarray:
        """
        Args:
            ids: (H, W) integers.
            source: the file that they are from, for the message.

        Returns:
            (H, W) uint8 classes.

        Raises:
            ValueError: ids that the table does not know; names the file and up to ten of them.
        """
        known = (ids >= 0) & (ids < len(self._table))
        classes = np.where(known, self._table[np.where(known, ids, 0)], -1)
        if (classes < 0).any():
            unknown = np.unique(ids[classes < 0])[:10].tolist()
            raise ValueError(
                f"{source} holds ids that its data set does not define: {', '.join(map(str, unknown))}. Is it another "
                "version of the data set, or a coloured map in place of one of ids?"
            )
        return classes.astype(np.uint8)


def write_label_map(path: str | os.PathLike, classes: np.ndarray) -> None:
    """Write (H, W) uint8 as a grey PNG, atomically."""
    with atomic_write(path, "wb") as file:
        Image.fromarray(classes).save(file, format="PNG")


def read_label_map(path: str | os.PathLike) -> np.ndarray:
    """(H, W) uint8.

    Raises:
        FileNotFoundError: no such file.
        DataError: it cannot be read, is turned by an EXIF mark, or is not 8-bit grey. Detectron2 would silently take
            the brightness of a palette's colours for classes; palettes in which this is the class itself pass.
    """
    try:
        with Image.open(path) as image:
            mode, classes, as_read = image.mode, np.array(image), np.array(image.convert("L"))
            turned = image.getexif().get(0x0112, 1) != 1
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise DataError(f"{path} cannot be read as a label map: {opening_error(path, error)}") from error
    if turned:
        raise DataError(
            f"{path} has an EXIF mark that turns it, which training would follow and evaluation not: save it upright, "
            "without the mark."
        )
    if mode not in ("L", "P") or (classes != as_read).any():
        raise DataError(
            f"{path} is an image of mode {mode}, not a grey one of 8 bits: it is no label map; "
            "dyn-d2 prepare semantic writes these."
        )
    return as_read


def read_classes(path: str | os.PathLike, classes: int, ignore_label: int = IGNORE) -> np.ndarray:
    """(H, W) uint8 of classes.

    Args:
        classes: K.

    Raises:
        DataError: see :func:`read_label_map`; or it holds something else than 0 ... K - 1 and ``ignore_label``.
    """
    labels = read_label_map(path)
    found = np.flatnonzero(np.bincount(labels.ravel(), minlength=1))
    wrong = found[(found >= classes) & (found != ignore_label)]
    if len(wrong):
        raise DataError(
            f"{path} holds {', '.join(map(str, wrong[:10]))}: neither one of {classes} classes (from 0) nor the "
            f"ignore label {ignore_label}."
        )
    return labels


def load_pairs(images: str | os.PathLike, maps: str | os.PathLike, image_suffix: str = ".jpg") -> list[Record]:
    """A record for every label map in the folder ``maps``, sorted by name, with the image of that name in ``images``.

    Args:
        image_suffix: of the images; "" for any that an image can have.

    Returns:
        Records with file_name, sem_seg_file_name and image_id, the name without its ending.

    Raises:
        FileNotFoundError: there is no label map, or one has no image.
        DataError: one has several images.
    """
    paths = sorted(Path(maps).glob("*.png"))
    if not paths:
        raise FileNotFoundError(f"{maps} holds no *.png.")
    stems = {path.stem for path in paths}
    own = {path.resolve() for path in paths}  # maps and images may share a folder
    present: dict[str, str] = {}
    for name in sorted(os.listdir(images)):
        stem, suffix = os.path.splitext(name)
        if not image_suffix and suffix.lower() not in IMAGE_SUFFIXES or Path(images, name).resolve() in own:
            continue
        key = name if image_suffix else stem
        if key in present and stem in stems:
            raise DataError(f"{images} holds {present[key]} and {name}: leave one image of that name there.")
        present[key] = name
    missing = [path.stem + image_suffix for path in paths if path.stem + image_suffix not in present]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(paths)} label maps in {maps} have no image in {images}, the first is "
            f"{missing[0]}: unpack the images again, or remove these maps."
        )
    return [
        {
            "file_name": os.path.join(images, present[path.stem + image_suffix]),
            "sem_seg_file_name": str(path),
            "image_id": path.stem,
        }
        for path in paths
    ]


def count_pixels(records: Iterable[Record], classes: int, ignore_label: int = IGNORE) -> np.ndarray:
    """How many pixels each class has.

    Args:
        classes: K.

    Returns:
        (K + 1,) int64, ignored pixels last.

    Raises:
        ValueError: a map holds something else than 0 ... K - 1 and ``ignore_label``; names file and values.
    """
    counts = np.zeros(256, np.int64)
    for record in records:
        counts += np.bincount(read_classes(record["sem_seg_file_name"], classes, ignore_label).ravel(), minlength=256)
    ignored = counts[ignore_label] if 0 <= ignore_label < 256 else 0
    if 0 <= ignore_label < classes:
        counts[ignore_label] = 0
    return np.append(counts[:classes], ignored)
