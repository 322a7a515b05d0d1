"""The hybrid data set: five digits beside five classes of photographs, easy and hard images in one set of ten classes.

McGill and Perona mix MNIST's digits 0 to 4, in two random colours that differ by 0.3 or more, with CIFAR-10's airplane,
automobile, deer, frog and horse. The digits here are scikit-learn's (8 x 8 pixels, enlarged): they come with it. There
are about 180 of a class, so each is drawn several times, in other colours each time.
"""

from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from dyn_d2.data.classification.readers import read_digits
from dyn_d2.data.few_shot.sources import forget
from dyn_d2.data.parts import TEST, TRAIN, register_parts
from dyn_d2.data.registered import registered_records
from dyn_d2.utils.seeds import derive_seed

from detectron2.data import DatasetCatalog, MetadataCatalog

DIGITS = ("0", "1", "2", "3", "4")
PHOTOGRAPHS = {"airplane": 0, "automobile": 1, "deer": 4, "frog": 6, "horse": 7}  # and their numbers in CIFAR-10
SIDE, DISTANCE = 32, 0.3
SOURCE = "cifar10_jpeg"


def register_hybrid() -> None:
    """Register ``hybrid_train`` and ``hybrid_test``, and the parts of the first. Nothing is read before one is used."""
    for split in (TRAIN, TEST):
        name = f"hybrid_{split}"
        forget(name)
        DatasetCatalog.register(name, partial(hybrid_records, split))
        MetadataCatalog.get(name).set(
            evaluator_type="classification", thing_classes=[*DIGITS, *PHOTOGRAPHS], recipe="cifar10", split=split
        )
    register_parts(f"hybrid_{TRAIN}")


def hybrid_records(split: str) -> list[dict[str, Any]]:
    """As many digits as photographs of each class.

    Raises:
        FileNotFoundError: cifar10_jpeg is not there.
    """
    places = {number: len(DIGITS) + place for place, number in enumerate(PHOTOGRAPHS.values())}
    photographs = [r for r in registered_records(f"{SOURCE}_{split}") if r["label"] in places]
    records = [{**record, "label": places[record["label"]]} for record in photographs]
    each = len(records) // len(PHOTOGRAPHS)
    digits = [r for r in read_digits(split == TRAIN) if r["label"] < len(DIGITS)]
    grey = [
        np.asarray(Image.fromarray(r["image"][..., 0]).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for r in digits
    ]
    generator = np.random.default_rng(derive_seed("hybrid digits", split))
    for label in range(len(DIGITS)):
        own = [number for number, record in enumerate(digits) if record["label"] == label]
        for turn in range(each):
            image = coloured(grey[own[turn % len(own)]] / 255.0, generator)
            records.append({"image": image, "label": label})
    return [{**record, "image_id": number} for number, record in enumerate(records)]


def coloured(ink: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(H, W) ink in [0, 1] -> (H, W, 3) uint8: two random colours whose distance in the unit cube is ``DISTANCE`` or
    more, the second one where there is ink."""
    while True:
        below, above = generator.uniform(size=(2, 3))
        if np.linalg.norm(above - below) >= DISTANCE:
            return np.round(255 * (below + ink[..., None] * (above - below))).astype(np.uint8)
