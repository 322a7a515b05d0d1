"""Files of image classification data sets, each format as it was published, read into records.

A record is {"image": (H, W, 3) uint8 RGB, or a 1-D uint8 array of an encoded file; or "file_name"; "label": class
number; "image_id": position in the data set}, with "height" and "width" where they are known without decoding.
"""

import logging
import pickle
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dyn_d2.utils.files import files_below
from dyn_d2.utils.restricted_pickle import load as load_pickle

from .names import CIFAR10, CIFAR100, CIFAR100_SUPERCLASS_OF, DIGITS

logger = logging.getLogger(__name__)

Record = dict[str, Any]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
DIGITS_TRAIN = 1437  # of 1797: the last fifth is for testing; neighbours were written by the same person


def array_records(
    images: Sequence[np.ndarray] | np.ndarray, labels: np.ndarray, classes: int, source: str
) -> list[Record]:
    """Records of images that are in memory.

    Args:
        images: arrays as the module's docstring says.
        labels: (N,) class numbers.
        source: file that both come from, for messages.

    Raises:
        ValueError: counts differ, or a label is not in [0, classes).
    """
    if len(images) != len(labels):
        raise ValueError(f"{source} holds {len(images)} images but {len(labels)} labels: copy the file again.")
    labels = np.asarray(labels, dtype=np.int64)
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        raise ValueError(
            f"{source}: image {outside[0]} has label {labels[outside[0]]}, labels have to be 0 to {classes - 1} "
            f"({len(outside)} such images)."
        )
    records = [
        {"image": image, "label": label, "image_id": i}
        for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True))
    ]
    for record in records:
        if record["image"].ndim == 3:
            record["height"], record["width"] = record["image"].shape[:2]
    return records


def _cifar(files: Sequence[Path], label_key: str) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """(N, 32, 32, 3) images, (N,) labels and the contents of batch files of CIFAR's "python version"."""
    images, labels, contents = [], [], []
    for path in files:
        try:
            with open(path, "rb") as file:
                content = load_pickle(file)
            data, found = np.asarray(content["data"]), content[label_key]
            images.append(data.reshape(len(found), 3, 32, 32))
        except (pickle.UnpicklingError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is no batch file of CIFAR's python version ({error}): unpack the archive again."
            ) from error
        labels.append(np.asarray(found))
        contents.append(content)
    stacked = np.ascontiguousarray(np.concatenate(images).transpose(0, 2, 3, 1))
    return stacked, np.concatenate(labels), contents


def read_cifar10(files: Sequence[Path]) -> list[Record]:
    """CIFAR-10 from data_batch_* or test_batch."""
    images, labels, _ = _cifar(files, "labels")
    return array_records(images, labels, len(CIFAR10), str(files[0].parent))


def read_cifar100(files: Sequence[Path]) -> list[Record]:
    """CIFAR-100 from train or test; labels are the fine ones.

    Raises:
        ValueError: also where the coarse labels are not those of the published tree.
    """
    images, labels, contents = _cifar(files, "fine_labels")
    records = array_records(images, labels, len(CIFAR100), str(files[0]))
    coarse = [number for content in contents for number in content.get("coarse_labels", ())]
    if coarse and not np.array_equal(coarse, np.asarray(CIFAR100_SUPERCLASS_OF)[labels]):
        raise ValueError(f"{files[0]}: coarse labels do not fit the fine ones; unpack the archive again.")
    return records


def read_svhn(files: Sequence[Path]) -> list[Record]:
    """SVHN's cropped digits (format 2, *_32x32.mat), the files one after the other; the label 10 means the digit 0."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    images, labels = [], []
    for path in files:
        try:
            content = loadmat(str(path), variable_names=("X", "y"))
            images.append(np.ascontiguousarray(content["X"].transpose(3, 0, 1, 2)))
            labels.append(content["y"].reshape(-1).astype(np.int64) % 10)
        except (KeyError, ValueError, TypeError, NotImplementedError, EOFError, zlib.error, MatReadError) as error:
            raise ValueError(f"{path} is no *_32x32.mat of SVHN ({error}): download it again.") from error
    return array_records([image for part in images for image in part], np.concatenate(labels), 10, str(files[0]))


def read_packed_jpeg(files: Sequence[Path]) -> list[Record]:
    """JPEG files packed into one npz: `jpeg` (all bytes), `offset` (N + 1), `label`, `classes`."""
    (path,) = files
    try:
        with np.load(path) as content:
            data, offset, labels = content["jpeg"], content["offset"], content["label"]
            classes = tuple(str(name) for name in content["classes"])
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is no npz with jpeg, offset, label and classes ({error}).") from error
    if classes != CIFAR10:
        raise ValueError(f"{path} has the classes {', '.join(classes)}, not those of CIFAR-10 in their order.")
    if len(offset) == 0 or offset[0] != 0 or offset[-1] != len(data) or (np.diff(offset) <= 0).any():
        raise ValueError(f"{path}: the offsets do not divide the {len(data)} bytes into images; copy it again.")
    images = [data[start:end] for start, end in zip(offset[:-1].tolist(), offset[1:].tolist(), strict=True)]
    return array_records(images, labels, len(CIFAR10), str(path))


def read_digits(train: bool) -> list[Record]:
    """The 8 x 8 digits that come with scikit-learn, grey as RGB."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    part = slice(None, DIGITS_TRAIN) if train else slice(DIGITS_TRAIN, None)
    grey = np.round(digits.images[part] * (255 / 16)).astype(np.uint8)
    return array_records(np.repeat(grey[..., None], 3, axis=3), digits.target[part], len(DIGITS), "scikit-learn digits")


def folder_classes(root: Path) -> list[str]:
    """Names of the folders in ``root``, sorted: the classes of a data set with one folder a class.

    Raises:
        ValueError: there is none.
    """
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise ValueError(f"{root} has no folders: put the images of each class into a folder of its name.")
    return names


def _files(folder: Path) -> list[Path]:
    """All files below a folder, but those that file managers hide or leave behind."""
    return [
        path for path in files_below(folder) if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def is_image(path: Path) -> bool:
    """Whether a file is one by its ending."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def other_files(root: Path) -> list[Path]:
    """Files in the folders of the classes that are no images by their endings."""
    return [path for name in folder_classes(root) for path in _files(root / name) if not is_image(path)]


def left_out(root: Path, others: Sequence[Path]) -> str:
    """What to say of such files."""
    count = "1 file" if len(others) == 1 else f"{len(others)} files"
    return f"{count} below {root} left out: no images by their endings, the first is {others[0]}"


def read_folders(root: Path, classes: Sequence[str]) -> list[Record]:
    """Images below one folder a class, in the order of their names; other files are left out, with a warning.

    Args:
        classes: in the order of the labels.

    Raises:
        ValueError: a folder that is no class, or no image at all.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = [name for name in folder_classes(root) if name not in numbers]
    if unknown:
        raise ValueError(f"{root} has folders that are none of the {len(classes)} classes: {', '.join(unknown[:10])}.")
    files = [(path, numbers[name]) for name in folder_classes(root) for path in _files(root / name)]
    found = [(path, label) for path, label in files if is_image(path)]
    others = [path for path, _ in files if not is_image(path)]
    if others:
        logger.warning(left_out(root, others))
    if not found:
        raise ValueError(f"the folders of {root} hold no images ({', '.join(IMAGE_SUFFIXES)}).")
    return [{"file_name": str(path), "label": label, "image_id": i} for i, (path, label) in enumerate(found)]
