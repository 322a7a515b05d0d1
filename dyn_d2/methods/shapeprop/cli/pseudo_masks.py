"""Let a trained model predict the masks of training objects that have boxes only (Progressive Mask R-CNN).

    dyn-d2 train --config-file X.yaml OUTPUT_DIR output/first
    dyn-d2 pseudo-masks --config-file X.yaml --weights output/first/model_final.pth --output output/masks.json
    dyn-d2 train --config-file X.yaml INPUT.PARTIAL_MASKS.PSEUDO output/masks.json OUTPUT_DIR output/second

Boxes and classes are those of DATASETS.TRAIN; which of its masks count as missing follows from INPUT.PARTIAL_MASKS. The
result is a json in COCO's format with run lengths.
"""

import argparse

from dyn_d2.checkpoint.model import model_of
from dyn_d2.config.derive import build_cfg
from dyn_d2.methods.shapeprop.annotator import objects_without_masks, predict_masks
from dyn_d2.utils.atomic import write_json

from detectron2.utils.logger import setup_logger


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config that the model was trained with")
    parser.add_argument("--weights", required=True, metavar="FILE", help="its checkpoint")
    parser.add_argument("--output", required=True, metavar="FILE", help="json to write")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    args = parser.parse_args(argv)
    setup_logger(name="dyn_d2")
    cfg = build_cfg(args.config_file, args.opts)
    cfg.freeze()
    records = objects_without_masks(cfg)
    model, _ = model_of(cfg, args.weights)
    content = predict_masks(cfg, model, records)
    origin = {"description": f"masks predicted by {args.weights} for given boxes", "config": args.config_file}
    write_json(args.output, {"info": origin, **content}, indent=None)
    print(f"{args.output}: {len(content['annotations']):,} masks in {len(content['images']):,} images")
    return 0
