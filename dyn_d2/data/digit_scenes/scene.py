"""One scene: handwritten digits and clutter laid over each other on a photograph, with the truth about what is seen.

Shape shorthand: H, W - height and width of the scene.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from dyn_d2.utils.seeds import derive_seed

from . import render
from .photos import BACKGROUND_CLASSES, IGNORE, random_background

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Label map: clutter 0, digit d is d + 1, then what the photographs show.
SEMANTIC_CLASSES = ("clutter", *CLASS_NAMES, *BACKGROUND_CLASSES)

MAX_ANGLE = 25.0  # degrees; more would make a 6 a 9 and a 7 a 1
MIN_VISIBLE = 0.7  # of a digit's ink, after all that covers it
MIN_INSIDE = 0.8  # of a shape's ink, inside the image
_TRIES = 12
_COVERED = -1  # owner of pixels of clutter


@dataclass(frozen=True)
class SceneOptions:
    """What scenes look like.

    Attributes:
        short_side: range of the image's shorter side, in pixels.
        max_aspect: the longer side is at most so many times the shorter.
        digits: range of the number of digits.
        clutter: range of the number of other shapes.
        digit_size: range of the height of a digit's 8 rows, as a part of the shorter side.
    """

    short_side: tuple[int, int] = (128, 160)
    max_aspect: float = 1.2
    digits: tuple[int, int] = (2, 6)
    clutter: tuple[int, int] = (0, 3)
    digit_size: tuple[float, float] = (0.18, 0.6)

    def __post_init__(self) -> None:
        for name, least in (("short_side", 32), ("digits", 1), ("clutter", 0), ("digit_size", 0.05)):
            low, high = getattr(self, name)
            if not least <= low <= high:
                raise ValueError(f"DigitScenes: {name} is ({low}, {high}); it has to be a range from {least} up.")
        if self.digit_size[1] > 1:
            raise ValueError(f"DigitScenes: digit_size is {self.digit_size}; a digit has to fit into the image (1).")
        if not 1 <= self.max_aspect <= 3:
            raise ValueError(f"DigitScenes: max_aspect is {self.max_aspect}; it has to be between 1 and 3.")


@dataclass(frozen=True)
class Scene:
    """A picture and its truth.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        classes: the digit of each object, positions in ``CLASS_NAMES``.
        sources: the position of each object's original in ``load_digits()``.
        visible: the part of each object's ink that nothing hides or cuts off.
        masks: for each object (H, W) bool, the ink that is visible; no two overlap.
        semantic: (H, W) uint8, positions in ``SEMANTIC_CLASSES``; 255 where edges blend or nothing is known.
    """

    image: np.ndarray
    classes: list[int]
    sources: list[int]
    visible: list[float]
    masks: list[np.ndarray]
    semantic: np.ndarray


@cache
def digit_pool(split: str) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """All originals, and for each class the positions that ``split`` ("train" or "val") may use.

    The 1,797 originals are sorted by writer, more or less: the first three quarters are for train, so that val has
    other originals and mostly other hands.
    """
    from sklearn.datasets import load_digits  # takes a second, which importing dyn_d2 should not

    images, labels = load_digits(return_X_y=True)
    end = len(labels) * 3 // 4
    mine = np.arange(len(labels)) < end if split == "train" else np.arange(len(labels)) >= end
    return images.reshape(-1, 8, 8), tuple(np.flatnonzero(mine & (labels == digit)) for digit in range(10))


def render_scene(split: str, index: int, seed: int = 0, options: SceneOptions | None = None) -> Scene:
    """Scene number ``index`` of a split. It depends on the arguments alone, not on other scenes.

    Args:
        split: "train" or "val"; they share neither originals nor parts of the photographs.
    """
    options = options or SceneOptions()
    rng = np.random.default_rng(derive_seed("digit scenes", seed, split, index))
    short = int(rng.integers(options.short_side[0], options.short_side[1], endpoint=True))
    long = round(short * rng.uniform(1, options.max_aspect))
    height, width = (short, long) if rng.random() < 0.5 else (long, short)
    canvas = _Canvas(*random_background(split, height, width, rng))
    plan = [True] * int(rng.integers(*options.digits, endpoint=True))
    plan += [False] * int(rng.integers(*options.clutter, endpoint=True))
    for is_digit in rng.permutation(plan):
        if is_digit:
            _add_digit(canvas, split, short, options, rng)
        else:
            _add_clutter(canvas, short, rng)
    return canvas.finish(rng)


def _add_digit(canvas: "_Canvas", split: str, short: int, options: SceneOptions, rng: np.random.Generator) -> None:
    originals, positions = digit_pool(split)
    digit = int(rng.integers(10))
    source = int(rng.choice(positions[digit]))
    low, high = np.log(options.digit_size)
    size = short * np.exp(rng.uniform(low, high))
    threshold = rng.uniform(7, 10)
    outlined = rng.random() < 0.2
    pose = {
        "angle": rng.uniform(-MAX_ANGLE, MAX_ANGLE),
        "shear": rng.uniform(-0.25, 0.25),
        "stretch": rng.uniform(0.8, 1.25),
    }
    for _ in range(_TRIES):
        # The outermost line is the shape; with an outline, the inner one is where the filling begins.
        lines = (threshold - 1.5, threshold + 1.5) if outlined else (threshold,)
        shape, *filling = render.digit_alphas(originals[source], size, lines, **pose)
        place = canvas.find_place(shape, rng)
        if place is not None:
            canvas.paint(shape, place, rng, filling=filling[0] if filling else None, digit=digit, source=source)
            return
        size = max(size * 0.9, short * options.digit_size[0])


def _add_clutter(canvas: "_Canvas", short: int, rng: np.random.Generator) -> None:
    shape = render.clutter_alpha(short * rng.uniform(0.12, 0.5), rng)
    for _ in range(_TRIES):
        place = canvas.find_place(shape, rng)
        if place is not None:
            canvas.paint(shape, place, rng)
            return


class _Canvas:
    """The scene while it is painted, back to front."""

    def __init__(self, image: np.ndarray, background_labels: np.ndarray) -> None:
        self.image = image.copy()
        offset = 1 + len(CLASS_NAMES)
        self.semantic = np.where(background_labels == IGNORE, IGNORE, background_labels + offset).astype(np.uint8)
        self.owner = np.zeros(image.shape[:2], np.int16)  # 1 + object number, 0 for none
        self.classes: list[int] = []
        self.sources: list[int] = []
        self.areas: list[int] = []  # ink of each digit before anything hides it

    def find_place(self, alpha: np.ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
        """Try one random (top, left); None if the shape would leave the image or hide too much of a digit."""
        sides = np.array(alpha.shape)
        first, last = np.ceil(-(1 - MIN_INSIDE) * sides), np.floor(self.owner.shape - MIN_INSIDE * sides)
        if (last < first).any():
            return None
        top, left = (int(start) for start in rng.integers(first.astype(int), last.astype(int), endpoint=True))
        window, part = self._overlap(alpha.shape, (top, left))
        solid = alpha >= 0.5
        inside = solid[part]
        if inside.sum() < MIN_INSIDE * solid.sum():
            return None
        hidden = np.bincount(self.owner[window][inside].clip(0), minlength=len(self.areas) + 1)[1:]
        left_over = np.bincount(self.owner.clip(0).ravel(), minlength=len(self.areas) + 1)[1:] - hidden
        return None if (left_over < MIN_VISIBLE * np.array(self.areas)).any() else (top, left)

    def _overlap(self, shape: tuple[int, int], place: tuple[int, int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The same pixels as slices of the canvas and of a patch of ``shape`` at ``place``."""
        window: list[slice] = []
        part: list[slice] = []
        for axis, (side, start) in enumerate(zip(shape, place, strict=True)):
            first, last = max(start, 0), min(start + side, self.owner.shape[axis])
            window.append(slice(first, last))
            part.append(slice(first - start, last - start))
        return tuple(window), tuple(part)

    def paint(
        self,
        alpha: np.ndarray,
        place: tuple[int, int],
        rng: np.random.Generator,
        filling: np.ndarray | None = None,
        digit: int | None = None,
        source: int = -1,
    ) -> None:
        """Lay a shape over the scene; without ``digit`` it is clutter. ``filling`` gets a second colour."""
        window, part = self._overlap(alpha.shape, place)
        pixels = self.image[window]
        around = pixels.mean(axis=(0, 1))
        layers = [(alpha, render.ink(alpha.shape, around, rng))]
        if filling is not None:
            layers.append((filling, render.ink(alpha.shape, layers[0][1].mean(axis=(0, 1)), rng)))
        opacity = rng.uniform(0.75, 1)
        for mask, colour in layers:
            colour = np.broadcast_to(colour, (*alpha.shape, 3))[part]
            weight = (mask[part] * opacity)[..., None]
            pixels[:] = pixels * (1 - weight) + colour * weight
        solid, soft = alpha[part] >= 0.5, np.abs(alpha[part] - 0.5) < 0.25
        self.semantic[window][solid] = 0 if digit is None else digit + 1
        self.semantic[window][soft] = IGNORE
        if digit is not None:
            self.classes.append(digit)
            self.sources.append(source)
            self.areas.append(int((alpha >= 0.5).sum()))
        self.owner[window][solid] = _COVERED if digit is None else len(self.classes)

    def finish(self, rng: np.random.Generator) -> Scene:
        """Add what a camera adds, and read off the masks."""
        image = self.image + rng.normal(0, rng.uniform(0, 7), self.image.shape)
        picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
        if rng.random() < 0.25:
            picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8)))
        masks = [self.owner == number for number in range(1, len(self.classes) + 1)]
        visible = [float(mask.sum()) / area for mask, area in zip(masks, self.areas, strict=True)]
        return Scene(np.asarray(picture), self.classes, self.sources, visible, masks, self.semantic)
