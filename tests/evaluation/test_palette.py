"""Colours of classes: no two of the first ones look alike, and letters are legible on all of them."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from dyn_d2.evaluation.palette import class_colour, letters_on


def linear(colour: str) -> np.ndarray:
    """Shares of red, green and blue light of an sRGB colour."""
    return np.array([s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in to_rgb(colour)])


def lab(colour: str) -> np.ndarray:
    """CIE 1976 L*a*b* under D65, by its definition."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    shares = to_xyz @ linear(colour) / (0.95047, 1.0, 1.08883)
    x, y, z = (t ** (1 / 3) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29 for t in shares)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize(("classes", "bound"), [(30, 24), (50, 24), (150, 14)])
def test_colours_are_apart(classes: int, bound: float) -> None:
    colours = [lab(class_colour(number)) for number in range(classes)]
    nearest = min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(colours, 2))
    assert nearest > bound  # 2.3 is just seen; 8 and 10 once had 5


def test_hundreds_of_labels_have_a_colour_each() -> None:
    assert len({class_colour(number) for number in range(700)}) == 700
    assert class_colour(10**6).startswith("#")


def test_letters_are_legible() -> None:
    for number in range(150):
        light = [
            float((0.2126, 0.7152, 0.0722) @ linear(c))
            for c in (class_colour(number), letters_on(class_colour(number)))
        ]
        assert (max(light) + 0.05) / (min(light) + 0.05) > 2.5  # the contrast of WCAG 2
