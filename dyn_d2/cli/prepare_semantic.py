"""Write the label maps of a semantic segmentation set from its published files.

dyn-d2 prepare semantic ade20k_sem_seg                    # below $DETECTRON2_DATASETS
dyn-d2 prepare semantic coco_panoptic_semantic --root /data --splits val --jobs 4
"""

import argparse
from pathlib import Path

from dyn_d2.data.semantic.prepare import preparable, prepare
from dyn_d2.data.semantic.sets import root


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=preparable(), help="the data set, as it is registered without its split")
    parser.add_argument("--root", type=Path, default=root(), help="the folder of all data sets")
    parser.add_argument("--splits", nargs="+", default=[], help="default: all")
    parser.add_argument("--overwrite", action="store_true", help="write label maps that are there anew")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args(arguments)
    counts = prepare(options.name, options.root, options.splits, options.overwrite, options.jobs)
    for split, (total, written) in counts.items():
        print(f"{options.name}_{split}: {total:,} label maps, {written:,} of them written now")
    return 0
