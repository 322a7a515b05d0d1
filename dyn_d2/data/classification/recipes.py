"""What follows from the choice of a classification data set: class count, augmentation, mean and spread."""

import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from dyn_d2.data.parts import register_parts
from dyn_d2.data.registered import unregistered

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY

from .readers import IMAGE_SUFFIXES
from .sets import ensure_classes, is_classification, register_folders

# Recipe -> mean and standard deviation of red, green and blue (0 to 255), keys of INPUT.CLASSIFICATION (others: off).
# cifar10: as SkipNet's published code has it. svhn: none, as stochastic depth (Huang et al. 2016) has it.
_CROP_FLIP = {"PAD_CROP": 4, "FLIP": True}
RECIPES: dict[str, tuple[list[float], list[float], dict[str, Any]]] = {
    "cifar10": ([125.3, 123.0, 113.9], [51.6, 50.8, 51.3], _CROP_FLIP),
    "cifar100": ([129.3, 124.1, 112.4], [68.2, 65.4, 70.4], _CROP_FLIP),
    "svhn": ([111.6, 113.2, 120.6], [50.5, 51.3, 50.2], {}),
    "imagenet": (
        [123.675, 116.28, 103.53],
        [58.395, 57.12, 57.375],
        {"RANDOM_RESIZED_CROP": 224, "FLIP": True, "RESIZE_TEST": 256, "CROP_TEST": 224},
    ),
    "digits": ([77.9] * 3, [95.9] * 3, {}),
    "small_images": ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], _CROP_FLIP),
}
OFF = {"PAD_CROP": 0, "RANDOM_RESIZED_CROP": 0, "FLIP": False, "RESIZE_TEST": 0, "CROP_TEST": 0}
CUSTOM = "custom_images"
SMALL, LOOKED_AT = 64, 50  # sides in pixels up to which images of one size keep it; how many are looked at


def apply_classification(cfg: CfgNode, set_key: Callable[[str, Any, str], None]) -> None:
    """Derive keys from the data sets, where those are for classification; called before ``cfg`` is frozen.

    Args:
        set_key: (key, value, why) -> sets a derived value, unless the user gave one.

    Raises:
        ValueError: a classifier on a data set without labels of images, or an unknown recipe.
        FileNotFoundError: a data set whose classes are its folders is not there.
    """
    _register_custom(cfg, set_key)
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if _classifies(cfg.MODEL.META_ARCHITECTURE):
        others = [name for name in names if not is_classification(name)]
        if unknown := unregistered(names, "DATASETS"):
            raise ValueError(unknown)
        if others:
            raise ValueError(
                f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, but {', '.join(others)} is no registered "
                'data set with one label an image (evaluator_type "classification"): see datasets/README.md for those '
                "that are."
            )
    names = [name for name in names if is_classification(name)]
    if not names:
        return
    for name in names:
        ensure_classes(name)
    set_key("MODEL.IMAGE_CLASSIFIER.NUM_CLASSES", len(ensure_classes(names[0])), f"classes of {names[0]}")
    _apply_recipe(cfg, names[0], set_key)


def _classifies(architecture: str) -> bool:
    """Whether the meta-architecture gives an image one label (its class says ``classifies_images``)."""
    known = architecture in META_ARCH_REGISTRY
    return known and getattr(META_ARCH_REGISTRY.get(architecture), "classifies_images", False)


def _apply_recipe(cfg: CfgNode, name: str, set_key: Callable[[str, Any, str], None]) -> None:
    recipe = cfg.INPUT.CLASSIFICATION.RECIPE
    if recipe == "auto":
        recipe = MetadataCatalog.get(name).get("recipe", "")
    if recipe == "":
        return
    if recipe not in RECIPES:
        raise ValueError(f"INPUT.CLASSIFICATION.RECIPE is {recipe!r}: use auto, '' or one of {', '.join(RECIPES)}.")
    mean, std, keys = RECIPES[recipe]
    order = 1 if cfg.INPUT.FORMAT == "RGB" else -1
    why = f"recipe {recipe}"
    if not cfg.MODEL.TIMM.NAME:  # such a model has its own
        set_key("MODEL.PIXEL_MEAN", mean[::order], why)
        set_key("MODEL.PIXEL_STD", std[::order], why)
    for key, value in {**OFF, **keys}.items():
        set_key(f"INPUT.CLASSIFICATION.{key}", value, why)


def _register_custom(cfg: CfgNode, set_key: Callable[[str, Any, str], None]) -> None:
    """Register the folders of CLASSIFICATION.CUSTOM and make them the data sets of ``cfg``."""
    train, test = cfg.CLASSIFICATION.CUSTOM.TRAIN, cfg.CLASSIFICATION.CUSTOM.TEST
    if test and not train:
        raise ValueError("CLASSIFICATION.CUSTOM.TEST needs CLASSIFICATION.CUSTOM.TRAIN, whose folders are the classes.")
    if not train:
        return
    recipe = recipe_of(train)
    for split, folder in (("train", train), ("test", test)):
        if folder:
            register_folders(f"{CUSTOM}_{split}", folder, classes_from=train, recipe=recipe)
            MetadataCatalog.get(f"{CUSTOM}_{split}").split = split
        sets = (f"{CUSTOM}_{split}",) if folder else ()
        set_key(f"DATASETS.{split.upper()}", sets, f"CLASSIFICATION.CUSTOM.{split.upper()}")
    register_parts(f"{CUSTOM}_train")


def recipe_of(folder: str | os.PathLike) -> str:
    """The name of the recipe for a folder of one folder a class."""
    return "small_images" if _are_small(folder) else "imagenet"


def _are_small(folder: str | os.PathLike) -> bool:
    """Whether the images below ``folder`` are all of one small size, as far as the first ones tell: enlarging them to
    224 pixels would cost a hundred times as much."""
    sizes = set()
    files = (path for path in sorted(Path(folder).glob("*/*")) if path.suffix.lower() in IMAGE_SUFFIXES)
    for path in islice(files, LOOKED_AT):
        try:
            with Image.open(path) as image:
                sizes.add(image.size)
        except OSError:  # told where it is read
            continue
    return len(sizes) == 1 and max(next(iter(sizes))) <= SMALL
