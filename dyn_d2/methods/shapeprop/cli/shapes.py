"""Pictures of what ShapeProp sees: boxes, saliency, shape activation and masks side by side (Wang 2020, Fig. 8.8).

    dyn-d2 shapes --weights output/model_final.pth --dataset digit_scenes_val --count 6
    dyn-d2 shapes --weights output/model_final.pth --output pictures image1.jpg image2.jpg

The checkpoint is one of dyn_d2, trained with ShapeProp. A star marks classes without masks in training.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dyn_d2.data.partial_masks import masked_classes
from dyn_d2.data.registered import registered_records
from dyn_d2.engine.predictor import Predictor
from dyn_d2.evaluation.boxes_on_image import best_of, picture_names
from dyn_d2.methods.shapeprop.figures import draw_shapes
from dyn_d2.utils.atomic import atomic_write
from dyn_d2.utils.commands import add_picture_options

from detectron2.config import CfgNode
from detectron2.data import detection_utils as utils
from detectron2.utils.logger import setup_logger


def _files(dataset: str, count: int) -> list[str]:
    """Images spread evenly over a data set."""
    records = registered_records(dataset)
    return [records[i]["file_name"] for i in np.unique(np.linspace(0, len(records) - 1, count).astype(int))]


def _without_masks(cfg: CfgNode, classes: Sequence[str]) -> set[str]:
    masked = masked_classes(cfg.INPUT.PARTIAL_MASKS.CLASSES, classes)
    return set() if masked is None else {name for row, name in enumerate(classes) if row not in masked}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", help="image files")
    parser.add_argument("--dataset", default="", help="a registered data set instead of files")
    parser.add_argument("--count", type=int, default=6, help="how many of its images")
    add_picture_options(parser, "output/shapes", 3)
    args = parser.parse_args(argv)
    if bool(args.images) == bool(args.dataset) or args.count < 1:
        parser.error("give either image files or --dataset, and a --count of at least 1")
    setup_logger(name="dyn_d2")
    predictor = Predictor.load(args.weights, args.config_file, [*args.opts, "MODEL.SHAPE_PROP.OUTPUT_MAPS", "True"])
    files = args.images or _files(args.dataset, args.count)
    without_masks = _without_masks(predictor.cfg, predictor.classes)
    for file, name in zip(files, picture_names(files), strict=True):
        image = utils.read_image(file, "RGB")
        found, words = best_of(predictor(image), args.threshold, args.top)
        figure = draw_shapes(image, found, predictor.classes, without_masks)
        with atomic_write(Path(args.output) / name, "wb") as handle:
            figure.savefig(handle, format="png")
        print(f"{Path(args.output) / name}: {words}")
    return 0
