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
