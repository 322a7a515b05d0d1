"""Views of labelled images: where augmentation is a flip or nothing, they can be counted, and each has a number."""

import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from .mapper import ClassificationMapper, described

VIEW = "view_number"  # of an input: which of the ``Views`` it is, in place of the pixels under "image"
_NUMBER = "number"  # of a record: its place in the data set


def label_views_problem(mapper: Any, records: Sequence[dict[str, Any]]) -> str:
    """Why the views of these records cannot be counted, or cannot share a batch; "" where they can."""
    if type(mapper) is not ClassificationMapper:
        return f"images are mapped by {type(mapper).__name__}"
    if mapper.unlimited:
        return f"{' and '.join(mapper.unlimited)} (0 or [] for none) would make a new view at each step"
    sizes = {size for record in records if (size := _size(record))}
    if not sizes:
        return "no image can be read"
    if len(sizes) > 1:
        (height, width), (other_height, other_width) = sorted(sizes)[:: len(sizes) - 1]
        return f"images are of several sizes, from {height} x {width} to {other_height} x {other_width}"
    return ""


class Views:
    """All views of a training set without ``label_views_problem``: of each image one, or two where it may be flipped.

    Attributes:
        records: the data set dicts.
        each: views of an image.
        size: (height, width) of all views.
    """

    def __init__(self, mapper: ClassificationMapper, records: Sequence[dict[str, Any]]) -> None:
        self._mapper, self.records = mapper, records
        self.each = 2 if mapper.flips else 1
        self.size = next(size for record in records if (size := _size(record)))  # nothing resizes in training

    def __len__(self) -> int:
        return len(self.records) * self.each

    def __getitem__(self, number: int) -> tuple[Callable[[dict[str, Any]], dict[str, Any]], dict[str, Any]]:
        """What makes the model input of a view, and the record that it makes it of."""
        image, flipped = divmod(number, self.each)
        return partial(self._mapper.view, flipped=bool(flipped)), self.records[image]


class NumberedRecords(Dataset):
    """Records that know their place in the data set."""

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {**self._records[number], _NUMBER: number}


class NumberMapper:
    """Makes of ``NumberedRecords`` what the mapper of a training set does, with the same random numbers, but with the
    number of the view in place of its pixels: no image is read."""

    def __init__(self, mapper: ClassificationMapper) -> None:
        self._mapper = mapper

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        flipped = self._mapper.draw_flip()
        return {**described(record), VIEW: record[_NUMBER] * (2 if self._mapper.flips else 1) + flipped}


def _size(record: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width) of the image, from the head of its file; None where it cannot be read, which others tell."""
    if "height" in record and "width" in record:
        return record["height"], record["width"]
    image = record.get("image")
    if isinstance(image, np.ndarray) and image.ndim == 3:
        return image.shape[0], image.shape[1]
    try:
        with Image.open(record["file_name"] if image is None else io.BytesIO(image)) as opened:
            return opened.height, opened.width
    except OSError:
        return None
