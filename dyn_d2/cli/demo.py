"""Detect objects in images, or segment them, with nothing but a checkpoint of dyn_d2, which carries its config and
class names.

    dyn-d2 demo --weights output/model_final.pth --output pictures image1.jpg image2.jpg

Writes a picture an image and all detections as detections.json. Where no detection reaches the threshold, the best
ones are shown with their scores.

For a semantic segmentor the pictures show the classes of the pixels, at each depth of the concept tree where there is
one (DSSPN), and the stages that settled them (Layer Cascade); detections.json has the percent of the pixels of each.
Labels are those of the first set in DATASETS.TEST; a model of several sets predicts another one's after
--opts DATASETS.TEST "('NAME',)".
"""

import argparse
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dyn_d2.engine.predictor import Predictor, Segmenter, load_predictor
from dyn_d2.evaluation.boxes_on_image import best_of, labels_of, picture, picture_names
from dyn_d2.evaluation.label_figures import draw_label_maps
from dyn_d2.utils.atomic import atomic_write, write_json
from dyn_d2.utils.commands import add_picture_options
from dyn_d2.utils.errors import UserError

from detectron2.data import detection_utils as utils
from detectron2.structures import Instances
from detectron2.utils.logger import setup_logger

logger = logging.getLogger("dyn_d2.demo")


def _as_json(found: Instances, classes: list[str]) -> list[dict]:
    return [
        {"class": classes[label], "score": round(score, 4), "box_xyxy": [round(value, 2) for value in box]}
        for label, score, box in zip(
            found.pred_classes.tolist(), found.scores.tolist(), found.pred_boxes.tensor.tolist(), strict=True
        )
    ]


def detect(predictor: Predictor, image: np.ndarray, threshold: float, top: int) -> tuple[Figure, str, list[dict]]:
    """The picture of an image, what it shows in words, and all detections."""
    found = predictor(image)
    shown, words = best_of(found, threshold, top)
    labels = labels_of(shown, predictor.classes)
    masks = np.asarray(shown.pred_masks) if shown.has("pred_masks") else None
    figure = picture(image, shown.pred_boxes.tensor.numpy(), labels, shown.pred_classes.tolist(), masks=masks)
    return figure, f"{words}: {', '.join(labels[:10]) or '-'}", _as_json(found, predictor.classes)


def segment(segmenter: Segmenter, image: np.ndarray) -> tuple[Figure, str, dict[str, dict[str, float]]]:
    """The same for label maps; in place of detections, map -> label -> percent of the pixels."""
    maps = segmenter(image)
    shares = {labels.title: labels.shares() for labels in maps}
    words = ", ".join(f"{name} {share:.1f} %" for name, share in list(shares["classes"].items())[:10])
    return draw_label_maps(image, maps), words, shares


def run(show: Callable[[np.ndarray], tuple[Figure, str, Any]], images: list[str], output: Path) -> list[str]:
    """Show what is in each image, write pictures and detections.json into ``output``; returns the unreadable images."""
    found_by_file: dict[str, Any] = {}
    unreadable = []
    for number, (file, name) in enumerate(zip(images, picture_names(images), strict=True), 1):
        try:
            image = utils.read_image(file, "RGB")
        except (OSError, ValueError) as error:
            logger.error("%s cannot be read: %s", file, error)
            unreadable.append(file)
            continue
        figure, words, found_by_file[file] = show(image)
        logger.info("%d/%d %s: %s", number, len(images), file, words)
        with atomic_write(output / name, "wb") as handle:
            figure.savefig(handle, format="png")
    write_json(output / "detections.json", found_by_file)
    return unreadable


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="image files")
    add_picture_options(parser, "output/detections", 5)
    args = parser.parse_args(argv)
    setup_logger(name="dyn_d2")
    folders = [file for file in args.images if Path(file).is_dir()]
    if folders:
        raise ValueError(f"{folders[0]} is a folder: give image files, such as {Path(folders[0]) / '*.jpg'}.")
    missing = [file for file in args.images if not Path(file).is_file()]
    if missing:
        raise FileNotFoundError(f"no such image: {', '.join(missing)}")
    predictor = load_predictor(args.weights, args.config_file, args.opts)
    show: Callable[[np.ndarray], tuple[Figure, str, Any]]
    if isinstance(predictor, Segmenter):
        show = partial(segment, predictor)
    else:
        show = partial(detect, predictor, threshold=args.threshold, top=args.top)
    unreadable = run(show, args.images, Path(args.output))
    print(f"pictures and detections.json are in {args.output}")
    if unreadable:
        raise UserError(f"{len(unreadable)} of {len(args.images)} images are unreadable: {', '.join(unreadable)}")
    return 0
