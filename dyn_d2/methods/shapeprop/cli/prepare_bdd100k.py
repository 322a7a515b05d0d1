"""Merge BDD100K's detection and instance segmentation labels into one json with boxes for all and masks for some.

dyn-d2 prepare bdd100k                                      # below $DETECTRON2_DATASETS/bdd100k
dyn-d2 prepare bdd100k --root /data/bdd100k --masks polygons
"""

import argparse
from pathlib import Path

from dyn_d2.methods.shapeprop.bdd100k import annotation_file, default_root, prepare


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, default=default_root(), help="folder with images/ and labels/")
    parser.add_argument("--masks", choices=["auto", "bitmasks", "polygons"], default="auto",
                        help="which form of the instance labels; auto: bitmasks where they are")  # fmt: skip
    options = parser.parse_args(arguments)
    for split, counts in prepare(options.root, options.masks).items():
        numbers = ", ".join(f"{count:,} {what}" for what, count in counts.items())
        print(f"{annotation_file(options.root, split)}: {numbers}")
    return 0
