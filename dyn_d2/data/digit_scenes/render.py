"""Shapes as alpha masks: handwritten digits drawn large, and clutter that looks like no digit.

Every function is pure: the same arguments (and state of ``rng``) give the same pixels. An alpha mask is a float32
array, 0 where there is no ink and 1 where there is, soft along the edge for about one pixel.
"""

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

_BORDER = 4  # empty cells around the 8 x 8 grid: room for the tails of the spline and for outlines
_OVERSAMPLE = 4

# Strokes on a unit square, y downwards. Only letters that no digit resembles in any rotation that is used.
_LETTERS = (
    (((0, 1), (0.5, 0), (1, 1)), ((0.2, 0.6), (0.8, 0.6))),  # A
    (((1, 0), (0, 0), (0, 1), (1, 1)), ((0, 0.5), (0.8, 0.5))),  # E
    (((0, 0), (0, 1)), ((1, 0), (1, 1)), ((0, 0.5), (1, 0.5))),  # H
    (((0, 0), (0, 1)), ((0.9, 0), (0, 0.55), (1, 1))),  # K
    (((0, 1), (0.1, 0), (0.5, 0.7), (0.9, 0), (1, 1)),),  # M
    (((0, 0), (0.25, 1), (0.5, 0.3), (0.75, 1), (1, 0)),),  # W
    (((0, 0), (1, 1)), ((1, 0), (0, 1))),  # X
    (((0.5, 0), (0.5, 1)), ((0, 0.5), (1, 0.5)), ((0.15, 0.15), (0.85, 0.85)), ((0.85, 0.15), (0.15, 0.85))),  # *
)


def digit_alphas(
    digit: np.ndarray,
    height: float,
    thresholds: tuple[float, ...],
    angle: float = 0.0,
    shear: float = 0.0,
    stretch: float = 1.0,
) -> list[np.ndarray]:
    """Draw an 8 x 8 digit as a pen stroke.

    The grey levels count inked cells of a finer grid, so a level line of the cubic spline through them follows the
    original stroke closely; no pixel block stays visible.

    Args:
        digit: (8, 8) grey levels 0..16.
        height: of the 8 rows, in pixels.
        thresholds: grey levels (2.5..10) at which the ink ends, one result for each; lower is bolder.
        angle: rotation in degrees, clockwise.
        shear: pixels to the right for one pixel up.
        stretch: width over height, 1 for the original.

    Returns:
        For each threshold an (h, w) alpha mask, all of one shape, which the first one's ink fills exactly.
    """
    cell = height / 8
    turn = np.deg2rad(angle)
    # Columns: where one cell down and one cell to the right lead, as (y, x) in pixels.
    rotate = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    forward = rotate @ np.array([[1.0, 0.0], [-shear, stretch]]) * cell
    size = np.ceil(np.abs(forward).sum(axis=1) * 10).astype(int)  # 8 cells and one more on each side
    backward = np.linalg.inv(forward)
    padded = np.pad(digit.astype(np.float64), _BORDER)
    centre = (np.array(padded.shape) - 1) / 2
    levels = ndimage.affine_transform(
        padded, backward, offset=centre - backward @ ((size - 1) / 2), output_shape=tuple(size), order=3
    )
    # A stroke rises by about 10 grey levels in a cell: this makes its edge one pixel wide at every size.
    alphas = [np.clip(0.5 + (levels - threshold) * cell / 10, 0, 1).astype(np.float32) for threshold in thresholds]
    return _trim(alphas)


def clutter_alpha(size: float, rng: np.random.Generator) -> np.ndarray:
    """A random squiggle, blob, bundle of hatching lines or letter-like sign about ``size`` pixels large."""
    kind = rng.choice(["squiggle", "blob", "hatching", "sign"], p=[0.3, 0.25, 0.15, 0.3])
    side = max(8, round(size * 1.3))
    canvas = Image.new("L", (side * _OVERSAMPLE,) * 2)
    draw = ImageDraw.Draw(canvas)
    scale = size * _OVERSAMPLE
    margin = (side * _OVERSAMPLE - scale) / 2
    pen = max(2, round(scale * rng.uniform(0.05, 0.13)))

    def line(points: np.ndarray) -> None:
        corners = [tuple(point) for point in np.asarray(points) * scale + margin]
        draw.line(corners, fill=255, width=pen, joint="curve")
        for x, y in (corners[0], corners[-1]):
            draw.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=255)

    if kind == "squiggle":
        line(_squiggle(rng))
    elif kind == "blob":
        draw.polygon([tuple(point) for point in _blob(rng) * scale + margin], fill=255)
    elif kind == "hatching":
        for offset in np.linspace(0, 1, rng.integers(3, 6)):
            line(np.array([(offset, 0), (offset, 1)]))
    else:
        for stroke in _LETTERS[rng.integers(len(_LETTERS))]:
            line(np.array(stroke, float))
    canvas = canvas.rotate(rng.uniform(-40, 40), Image.Resampling.BILINEAR)
    return _trim([np.asarray(canvas.reduce(_OVERSAMPLE), np.float32) / 255])[0]


def _trim(alphas: list[np.ndarray]) -> list[np.ndarray]:
    """Cut all masks to the rows and columns where the first one has ink."""
    rows, columns = (np.flatnonzero(alphas[0].any(axis=axis)) for axis in (1, 0))
    return [alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] for alpha in alphas]


def _squiggle(rng: np.random.Generator) -> np.ndarray:
    """A wave with at least two bends on each side, which no digit has: (P, 2) points in the unit square."""
    t = np.linspace(0, 1, 60)
    waves, swing = rng.uniform(2, 4), rng.uniform(0.12, 0.3)
    return np.stack([t, 0.5 + swing * np.sin(2 * np.pi * waves * t + rng.uniform(0, 6)) + 0.1 * (t - 0.5)], axis=1)


def _blob(rng: np.random.Generator) -> np.ndarray:
    """A closed smooth outline: (P, 2) points in the unit square."""
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    waves = (rng.uniform(-0.1, 0.1) / k * np.cos(k * t + rng.uniform(0, 6)) for k in range(2, 6))
    radius = 0.35 + sum(waves, np.zeros_like(t))
    return 0.5 + radius[:, None] * np.stack([np.cos(t), np.sin(t)], axis=1) * rng.uniform(0.6, 1.0, 2)


def ink(shape: tuple[int, int], background: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A colour for every pixel of a shape: plain, or a gradient between two colours.

    Args:
        shape: (h, w) of the shape.
        background: (3,) mean RGB around it; the colours keep a distance from it.

    Returns:
        (h, w, 3) float32 RGB in 0..255, or (1, 1, 3) where all pixels are alike.
    """
    first = contrasting_colour(background, rng)
    if rng.random() < 0.65:
        return first[None, None]
    second = contrasting_colour(background, rng)
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    weight = np.clip(0.5 + 0.7 * (x * np.cos(angle) + y * np.sin(angle)), 0, 1)[..., None].astype(np.float32)
    return first * (1 - weight) + second * weight


def contrasting_colour(background: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The first of some random RGB colours that is far from ``background``, or the farthest: (3,) float32."""
    candidates = rng.uniform(0, 255, (8, 3)).astype(np.float32)
    distance = np.linalg.norm(candidates - background, axis=1)
    far = np.flatnonzero(distance > 110)
    return candidates[far[0] if len(far) else distance.argmax()]
