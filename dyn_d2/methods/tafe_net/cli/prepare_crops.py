"""Features of the objects of a COCO json, for classes that are given by a description (docs/tafe_net.md).

    dyn-d2 crop-features --json instances_train.json --images train/ --output crops/train.npz

Each box is cut out, enlarged to --size pixels and seen by a frozen network of timm, whose vector before the classifier
is kept. Crowds (VOC's difficult objects) are left out. The file is what ZERO_SHOT.CUSTOM.TRAIN and TEST take. It says
which network that was, so that a model that is trained on it can be used on images.
"""

import argparse
import os

import numpy as np

from dyn_d2.data.object_crops import CropOptions, add_crop_options, crop_options
from dyn_d2.methods.tafe_net.crops import crop_features, write_crops
from dyn_d2.methods.tafe_net.data.feature_source import FeatureSource
from dyn_d2.modeling.backbone.timm_models import build_pooled_model

from detectron2.utils.logger import setup_logger


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, CropOptions]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_crop_options(parser)
    parser.add_argument("--output", required=True, help="the .npz")
    parser.add_argument("--model", default="tf_efficientnet_lite0", help="of timm (default: %(default)s)")
    parser.add_argument("--weights", default="pretrained", help="as MODEL.TIMM.WEIGHTS (default: %(default)s)")
    args = parser.parse_args(argv)
    if not args.output.endswith(".npz"):
        parser.error("--output has to end with .npz")
    return args, crop_options(args, parser)


def main(argv: list[str] | None = None) -> int:
    args, options = parse(argv)
    setup_logger(name="dyn_d2")
    weights = os.path.abspath(args.weights) if os.path.isfile(args.weights) else args.weights
    model = build_pooled_model(args.model, weights)
    arrays = crop_features(model, args.json, args.images, options)
    arrays["source"] = np.array(FeatureSource.of(args.model, weights, args.size, model.module).as_text())
    write_crops(args.output, arrays)
    shape = arrays["features"].shape
    print(f"{args.output}: {shape[0]} objects of {len(set(arrays['labels']))} classes, {shape[1]} numbers each")
    return 0
