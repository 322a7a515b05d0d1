"""Features of the objects of a COCO json, for classes that are given by a description (docs/tafe_net.md).

    dyn-d2 crop-features --json instances_train.json --images train/ --output crops/train.npz

Each box is cut out, enlarged to --size pixels and seen by a frozen network of timm, whose vector before the classifier
is kept. Crowds (VOC's difficult objects) are left out. The file is what ZERO_SHOT.CUSTOM.TRAIN and TEST take. It says
which network that was, so that a model that is trained on it can be used on images.
"""

import argparse
import os

import numpy as np

from dyn_d2.methods.tafe_net.crops import CropOptions, crop_features, write_crops
from dyn_d2.methods.tafe_net.data.feature_source import FeatureSource
from dyn_d2.modeling.backbone.timm_models import build_pooled_model

from detectron2.utils.logger import setup_logger


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    default = CropOptions()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, help="boxes in COCO's format")
    parser.add_argument("--images", required=True, help="the folder of its images")
    parser.add_argument("--output", required=True, help="the .npz")
    parser.add_argument("--model", default="tf_efficientnet_lite0", help="of timm (default: %(default)s)")
    parser.add_argument("--weights", default="pretrained", help="as MODEL.TIMM.WEIGHTS (default: %(default)s)")
    parser.add_argument("--size", type=int, default=default.size, help="pixels of a crop (default: %(default)s)")
    context = "what a crop shows around its box, as a share of its sides (default: %(default)s)"
    parser.add_argument("--context", type=float, default=default.context, help=context)
    least = "pixels of the shorter side of a box (default: %(default)s)"
    parser.add_argument("--least", type=float, default=default.least, help=least)
    args = parser.parse_args(argv)
    if args.size < 1 or args.context < 0 or args.least <= 0:
        parser.error("--size has to be at least 1, --context at least 0, --least above 0")
    if not args.output.endswith(".npz"):
        parser.error("--output has to end with .npz")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    setup_logger(name="dyn_d2")
    weights = os.path.abspath(args.weights) if os.path.isfile(args.weights) else args.weights
    model = build_pooled_model(args.model, weights)
    arrays = crop_features(model, args.json, args.images, CropOptions(args.size, args.context, args.least))
    arrays["source"] = np.array(FeatureSource.of(args.model, weights, args.size, model.module).as_text())
    write_crops(args.output, arrays)
    shape = arrays["features"].shape
    print(f"{args.output}: {shape[0]} objects of {len(set(arrays['labels']))} classes, {shape[1]} numbers each")
    return 0
