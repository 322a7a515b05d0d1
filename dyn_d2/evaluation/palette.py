"""Colours of classes and labels."""

from functools import cache
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib.colors import to_hex, to_rgb

LEVELS, LIGHTNESS, CHROMA = 16, (30, 85), 30  # of red, green and blue; what is neither grey, nor nearly black or white
DARKER = 0.85
LIGHT = 66  # from this lightness on letters are black


def class_colour(number: int) -> str:
    """A colour for class or label ``number``. The first ten are matplotlib's, a little darker; each further one is as
    far from all before it as there is one, in CIELAB, where distances are those that are seen."""
    colours = _colours()
    return colours[number % len(colours)]


def letters_on(colour: Any) -> str:
    """The colour of letters that are legible on a colour of matplotlib."""
    return "black" if _lab(np.array([to_rgb(colour)]))[0, 0] > LIGHT else "white"


@cache
def _colours() -> list[str]:
    first = DARKER * np.array([to_rgb(colour) for colour in matplotlib.colormaps["tab10"].colors])  # type: ignore[attr-defined]
    levels = np.linspace(0, 1, LEVELS)
    others = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _lab(others)
    clear = (lab[:, 0] > LIGHTNESS[0]) & (lab[:, 0] < LIGHTNESS[1]) & (np.hypot(lab[:, 1], lab[:, 2]) > CHROMA)
    others, lab = others[clear], lab[clear]
    nearest = np.linalg.norm(lab[:, None] - _lab(first), axis=2).min(1)
    chosen = []
    while nearest.any():
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
    return [to_hex(colour) for colour in (*first, *others[chosen])]


def _lab(colours: np.ndarray) -> np.ndarray:
    """(N, 3) of CIELAB, of (N, 3) shares of red, green and blue."""
    return cv2.cvtColor(colours.astype(np.float32)[None], cv2.COLOR_RGB2LAB)[0].astype(float)
