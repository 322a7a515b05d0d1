#!/usr/bin/env python3
"""Detect objects in images with nothing but a checkpoint of dyn_d2, which carries its config and class names.

    python tools/demo.py --weights output/model_final.pth --output pictures image1.jpg image2.jpg

Writes a picture an image and all detections as detections.json. Where no detection reaches the threshold, the best
ones are shown with their scores.
"""

import argparse
import logging
from pathlib import Path

import numpy as np

from dyn_d2.engine.predictor import Predictor
from dyn_d2.evaluation.boxes_on_image import best_of, labels_of, picture, picture_names
from dyn_d2.utils.atomic import atomic_write, write_json
from dyn_d2.utils.errors import UserError, run_tool

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


def run(predictor: Predictor, images: list[str], output: Path, threshold: float, top: int) -> list[str]:
    """Detect in each image, write pictures and detections.json into ``output``; returns the unreadable images."""
    found_by_file: dict[str, list[dict]] = {}
    unreadable = []
    for number, (file, name) in enumerate(zip(images, picture_names(images), strict=True), 1):
        try:
            image = utils.read_image(file, "RGB")
        except (OSError, ValueError) as error:
            logger.error("%s cannot be read: %s", file, error)
            unreadable.append(file)
            continue
        found = predictor(image)
        shown, words = best_of(found, threshold, top)
        labels = labels_of(shown, predictor.classes)
        logger.info("%d/%d %s: %s: %s", number, len(images), file, words, ", ".join(labels[:10]) or "-")
        masks = np.asarray(shown.pred_masks) if shown.has("pred_masks") else None
        figure = picture(image, shown.pred_boxes.tensor.numpy(), labels, shown.pred_classes.tolist(), masks=masks)
        with atomic_write(output / name, "wb") as handle:
            figure.savefig(handle, format="png")
        found_by_file[file] = _as_json(found, predictor.classes)
    write_json(output / "detections.json", found_by_file)
    return unreadable


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--weights", required=True, help="a checkpoint")
    parser.add_argument("--config-file", default="", help="only for checkpoints that dyn_d2 did not write")
    parser.add_argument("--output", default="output/detections", help="folder for the pictures and detections.json")
    parser.add_argument("--threshold", type=float, default=0.5, help="least score that is drawn")
    parser.add_argument("--top", type=int, default=5, help="how many to draw where none reaches the threshold")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs that change the config")
    args = parser.parse_args(argv)
    setup_logger(name="dyn_d2")
    missing = [file for file in args.images if not Path(file).is_file()]
    if missing:
        raise FileNotFoundError(f"no such image: {', '.join(missing)}")
    predictor = Predictor.load(args.weights, args.config_file, args.opts)
    unreadable = run(predictor, args.images, Path(args.output), args.threshold, args.top)
    print(f"pictures and detections.json are in {args.output}")
    if unreadable:
        raise UserError(f"{len(unreadable)} of {len(args.images)} images are unreadable: {', '.join(unreadable)}")
    return 0


if __name__ == "__main__":
    run_tool(main)
