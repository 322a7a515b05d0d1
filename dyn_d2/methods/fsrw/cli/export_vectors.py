"""Make the class vectors of a detector that re-weights its features (FSRW, Meta R-CNN), after which it needs neither
support images nor its re-weighting module.

    dyn-d2 vectors export --config-file FSRW/digit_scenes.yaml --weights output/fsrw/model_final.pth \\
        --output output/vectors.npz FEW_SHOT.STAGE finetune FEW_SHOT.SHOTS 5
    dyn-d2 train --config-file ... --eval-only MODEL.WEIGHTS output/fsrw/model_final.pth \\
        MODEL.REWEIGHTING.VECTORS "['output/vectors.npz']"

Supports are the objects of DATASETS.TRAIN. ``--classes`` makes the vectors of some classes only: evaluation takes a
list of files, so that a class is added by a file of its own. ``--detector`` writes the checkpoint without the module.
"""

import argparse
import os

import torch

from dyn_d2.checkpoint import describe
from dyn_d2.checkpoint.model import model_of
from dyn_d2.config.derive import build_cfg
from dyn_d2.methods.fsrw.class_vectors import compute_vectors
from dyn_d2.methods.fsrw.reweighting import is_reweighted
from dyn_d2.utils.atomic import atomic_write

from detectron2.utils.logger import setup_logger


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config that names the support images")
    parser.add_argument("--weights", required=True, metavar="FILE", help="the detector's checkpoint")
    parser.add_argument("--output", required=True, metavar="FILE", help=".npz to write")
    parser.add_argument("--classes", default="", metavar="NAMES", help="separated by commas (default: all)")
    parser.add_argument("--detector", default="", metavar="FILE", help="also write the checkpoint without the module")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    args = parser.parse_args(argv)
    setup_logger(name="dyn_d2")
    cfg = build_cfg(args.config_file, [*args.opts, "MODEL.REWEIGHTING.VECTORS", "[]"])
    model, _ = model_of(cfg, args.weights)
    if not is_reweighted(model):
        raise ValueError(f"{cfg.MODEL.META_ARCHITECTURE} has no class vectors: use FSRW or MetaRCNN.")
    vectors = compute_vectors(cfg, model, [name for name in args.classes.split(",") if name])
    vectors.save(args.output)
    counts = ", ".join(f"{name} {len(found)}" for name, found in zip(vectors.classes, vectors.samples, strict=True))
    print(f"{args.output}: vectors of width {vectors.width} from so many support images: {counts}")
    if args.detector:
        cfg.MODEL.REWEIGHTING.VECTORS = [os.path.abspath(args.output)]
        tensors = {name: value for name, value in model.state_dict().items() if not name.startswith("reweighting.")}
        described = {**describe(cfg, model), "classes": vectors.classes}
        with atomic_write(args.detector, "wb") as file:
            torch.save({"model": tensors, "dyn_d2": described}, file)
        print(f"{args.detector}: the detector alone")
    return 0
