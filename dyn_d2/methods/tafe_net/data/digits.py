"""scikit-learn's digits, whose classes are described by what they look like: zero-shot learning without a download."""

import numpy as np

from dyn_d2.data.classification.names import DIGITS
from dyn_d2.data.classification.readers import read_digits

from .described_set import DescribedSet, Part

# Attribute -> the digits that have it. Bars are those of a seven-segment display, curved ones included.
ATTRIBUTES = {
    "top bar": "0235789",
    "middle bar": "2345689",
    "bottom bar": "0235689",
    "upper left stroke": "045689",
    "upper right stroke": "01234789",
    "lower left stroke": "0268",
    "lower right stroke": "013456789",
    "loop over the whole height": "0",
    "upper loop": "89",
    "lower loop": "68",
    "open to the left": "2379",
    "open to the right": "256",
    "straight vertical stroke": "14",
    "diagonal stroke": "1247",
    "straight horizontal stroke": "457",
    "round at the top": "023689",
    "round at the bottom": "035689",
    "mirror symmetry, left and right": "018",
    "mirror symmetry, top and bottom": "0138",
    "drawn in one stroke": "01236789",
}
# Which digits are never trained on; "tune" is for choosing settings, the others for reporting.
UNSEEN = {"tune": "47", "1": "29", "2": "36", "3": "58"}
# Two-digit numbers: (second - first digit) modulo 5 of those that are never trained on. Each digit stays seen at each
# place, in eight numbers of ten.
UNSEEN_NUMBERS = {"tune": 0, "1": 1, "2": 2, "3": 3}
IMAGES = {"train": 40, "test": 10}  # of each number


def attribute_matrix() -> np.ndarray:
    """(10, attributes) of 0 and 1."""
    return np.array(
        [[float(str(digit) in having) for having in ATTRIBUTES.values()] for digit in range(10)], np.float32
    )


def read_digit_attributes(split: str) -> DescribedSet:
    """Training: the images of ``digits_train`` of eight digits; test: all of ``digits_test``. Features are (1, 8, 8)
    grey values in [0, 1].

    Args:
        split: a key of UNSEEN.
    """
    unseen = [int(digit) for digit in UNSEEN[split]]
    parts = {}
    for name in ("train", "test"):
        records = read_digits(name == "train")
        pixels = np.stack([record["image"][None, :, :, 0] for record in records]).astype(np.float32) / 255
        labels = np.array([record["label"] for record in records])
        kept = ~np.isin(labels, unseen) if name == "train" else slice(None)
        parts[name] = Part(pixels[kept], labels[kept])
    return DescribedSet("scikit-learn digits", list(DIGITS), attribute_matrix(), parts)


def read_number_attributes(split: str, one_hot: bool = False) -> DescribedSet:
    """The numbers 00 to 99, each image two of scikit-learn's digits side by side, drawn once and for all. A number is
    described by the attributes of its first digit, then those of its second. 80 are trained on; all are tested.

    Args:
        split: a key of UNSEEN_NUMBERS.
        one_hot: describe a digit by its place among the ten in place of its attributes.
    """
    first, second = np.divmod(np.arange(100), 10)
    seen = (second - first) % 5 != UNSEEN_NUMBERS[split]
    parts = {}
    for name, count in IMAGES.items():
        records = read_digits(name == "train")
        pixels = np.stack([record["image"][:, :, 0] for record in records]).astype(np.float32) / 255
        labels = np.array([record["label"] for record in records])
        numbers = np.repeat(np.flatnonzero(seen) if name == "train" else np.arange(100), count)
        rng = np.random.default_rng(0)
        halves = [
            pixels[[rng.choice(np.flatnonzero(labels == digit)) for digit in place[numbers]]]
            for place in (first, second)
        ]
        parts[name] = Part(np.concatenate(halves, axis=2)[:, None], numbers)
    of_digit = np.eye(10, dtype=np.float32) if one_hot else attribute_matrix()
    descriptions = np.concatenate([of_digit[first], of_digit[second]], axis=1)
    return DescribedSet("scikit-learn digits", [f"{number:02d}" for number in range(100)], descriptions, parts)
