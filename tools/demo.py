#!/usr/bin/env python3
"""Detect objects in images with nothing but a checkpoint of dyn_d2, which carries its config and class names.

    python tools/demo.py --weights output/model_final.pth --output pictures image1.jpg image2.jpg

Writes a picture an image and all detections as detections.json. Where no detection reaches the threshold, the best
ones are shown with their scores.
"""

import argparse
import logging
import sys
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from dyn_d2.checkpoint import CheckpointError
from dyn_d2.engine.predictor import Predictor
from dyn_d2.utils.atomic import atomic_write, write_json

from detectron2.data import detection_utils as utils
from detectron2.structures import Instances
from detectron2.utils.logger import setup_logger
from detectron2.utils.visualizer import Visualizer

logger = logging.getLogger("dyn_d2.demo")


def _shown(found: Instances, threshold: float, top: int) -> tuple[Instances, str]:
    above = found[found.scores >= threshold]
    if len(above):
        return above, f"{len(above)} with score >= {threshold:g}"
    if not len(found):
        return found, "nothing found"
    return found[:top], f"nothing reaches {threshold:g}; the best {min(top, len(found))} are shown"


def _as_json(found: Instances, classes: list[str]) -> list[dict]:
    return [
        {"class": classes[label], "score": round(score, 4), "box_xyxy": [round(value, 2) for value in box]}
        for label, score, box in zip(
            found.pred_classes.tolist(), found.scores.tolist(), found.pred_boxes.tensor.tolist(), strict=True
        )
    ]


def run(predictor: Predictor, images: list[str], output: Path, threshold: float, top: int) -> dict[str, list[dict]]:
    """Detect in each image, draw into ``output`` and return the detections by file name."""
    found_by_file = {}
    for file in tqdm(images, desc="images", unit="image"):
        image = utils.read_image(file, "RGB")
        found = predictor(image)
        shown, words = _shown(found, threshold, top)
        logger.info("%s: %s", file, words)
        scale = max(1.0, 480 / max(image.shape[:2]))
        picture = Visualizer(image, predictor.metadata, scale=scale).draw_instance_predictions(shown).get_image()
        with atomic_write(output / f"{Path(file).stem}.png", "wb") as handle:
            Image.fromarray(picture).save(handle, format="png")
        found_by_file[file] = _as_json(found, predictor.classes)
    write_json(output / "detections.json", found_by_file)
    return found_by_file


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+")
    parser.add_argument("--weights", required=True, help="a checkpoint")
    parser.add_argument("--config-file", default="", help="only for checkpoints that dyn_d2 did not write")
    parser.add_argument("--output", default="output/demo", help="folder for the pictures and detections.json")
    parser.add_argument("--threshold", type=float, default=0.5, help="least score that is drawn")
    parser.add_argument("--top", type=int, default=5, help="how many to draw where none reaches the threshold")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs that change the config")
    args = parser.parse_args(argv)
    setup_logger(name="dyn_d2")
    missing = [file for file in args.images if not Path(file).is_file()]
    if missing:
        print(f"no such image: {', '.join(missing)}", file=sys.stderr)
        return 2
    try:
        predictor = Predictor.load(args.weights, args.config_file, args.opts)
    except (FileNotFoundError, CheckpointError) as error:
        print(error, file=sys.stderr)
        return 2
    run(predictor, args.images, Path(args.output), args.threshold, args.top)
    print(f"pictures and detections.json are in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
