"""Backgrounds: random crops of scikit-learn's two sample photographs, with a label map of what they show.

``photo_regions.json`` holds polygons in pixels of the original photographs (427 x 640), drawn for this data set along
the edges of sky, building, water, trees, flowers and leaves; a later polygon lies on top of an earlier one. Places that
no polygon covers (the hazy shore, a blurred bud) and a band along every edge are not labelled.

Shape shorthand: H, W - height and width of the scene.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

IGNORE = 255
BACKGROUND_CLASSES = ("sky", "building", "water", "tree", "flower", "leaf")

# Left of its column a photograph belongs to val, right of it to train. The cuts go through the middle of the tower and
# of the flower, so that both parts show every class and share no pixel.
_CUT = {"china": 205, "flower": 310}
_WEIGHT = (0.6, 0.4)  # more often the photograph with more classes


@cache
def photo_strips(split: str) -> tuple[tuple[Image.Image, Image.Image], ...]:
    """Parts of the photographs that ``split`` ("train" or "val") may use, with maps of ``BACKGROUND_CLASSES``."""
    from sklearn.datasets import load_sample_images  # takes a second, which importing dyn_d2 should not

    regions = json.loads(Path(__file__).with_name("photo_regions.json").read_text())
    samples = load_sample_images()
    photos = {Path(name).stem: image for name, image in zip(samples.filenames, samples.images, strict=True)}
    strips = []
    for name, cut in _CUT.items():
        photo = Image.fromarray(photos[name])
        labels = Image.fromarray(_label_map(regions[name], (photo.height, photo.width)))
        box = (0, 0, cut, photo.height) if split == "val" else (cut, 0, photo.width, photo.height)
        strips.append((photo.crop(box), labels.crop(box)))
    return tuple(strips)


def _label_map(polygons: list[tuple[str, list[float]]], shape: tuple[int, int]) -> np.ndarray:
    canvas = Image.new("L", shape[::-1], IGNORE)
    draw = ImageDraw.Draw(canvas)
    for name, coordinates in polygons:
        draw.polygon(coordinates, fill=BACKGROUND_CLASSES.index(name))
    labels = np.array(canvas)
    edge = ndimage.maximum_filter(labels, 3) != ndimage.minimum_filter(labels, 3)
    return np.where(edge, np.uint8(IGNORE), labels)


def random_background(split: str, height: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A background and its labels.

    Returns:
        (H, W, 3) float32 RGB in 0..255 and (H, W) uint8: positions in ``BACKGROUND_CLASSES`` or ``IGNORE``.
    """
    image, labels = _random_crop(split, height, width, rng)
    if rng.random() < 0.3:
        # Two places behind one straight edge, as with a window frame or a page: more layouts from few photographs.
        other_image, other_labels = _random_crop(split, height, width, rng)
        angle, shift = rng.uniform(0, 2 * np.pi), rng.uniform(-0.25, 0.25)
        y, x = np.mgrid[:height, :width]
        distance = (x - width / 2) * np.cos(angle) + (y - height / 2) * np.sin(angle) + shift * min(height, width)
        weight = np.clip(distance + 0.5, 0, 1).astype(np.float32)[..., None]
        image = image * (1 - weight) + other_image * weight
        labels = np.where(distance > 0, other_labels, labels)
        labels[np.abs(distance) < 1] = IGNORE
    return image, labels


def _random_crop(split: str, height: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    strips = photo_strips(split)
    photo, labels = strips[rng.choice(len(strips), p=_WEIGHT)]
    largest = min(photo.height / height, photo.width / width)
    # Pixels of the photograph for one pixel of the scene.
    zoom = np.exp(rng.uniform(np.log(min(0.5, largest)), np.log(largest)))
    left = rng.uniform(0, photo.width - width * zoom)
    top = rng.uniform(0, photo.height - height * zoom)
    box = (left, top, left + width * zoom, top + height * zoom)
    crop = photo.resize((width, height), Image.Resampling.BICUBIC, box)
    if rng.random() < 0.3:
        crop = crop.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2.5)))
    pixels = np.asarray(crop, np.float32)
    regions = np.array(labels.resize((width, height), Image.Resampling.NEAREST, box))
    if rng.random() < 0.5:
        pixels, regions = pixels[:, ::-1], regions[:, ::-1]
    mean = pixels.mean(axis=(0, 1))
    pixels = (pixels - mean) * rng.uniform(0.6, 1.2) + mean * rng.uniform(0.6, 1.1) * rng.uniform(0.85, 1.1, 3)
    return np.clip(pixels, 0, 255).astype(np.float32), regions
