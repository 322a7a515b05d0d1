"""Data sets for FiftyOne (pip install 'dyn_d2[fiftyone]'), which shows, filters and compares their images in a browser:
ground truth, what a model finds, and which parts of a dynamic network ran.

    dyn-d2 browse --config-file my_classes.yaml
    dyn-d2 browse --dataset coco_2017_val --images 500 --weights output/model_final.pth --name night
    fiftyone app launch night

Each data set becomes one of FiftyOne, under its own name or --name, with the fields "ground_truth" and, of a model,
"predictions", "route_share" (of the multiply-adds of all parts), "route_gflops" and "route_open" (names of the parts
that ran). --export writes it into a folder as well, for other machines. Ground truth is what "dyn-d2 show-data" draws:
of sets of DATASETS.TRAIN the masks that INPUT.PARTIAL_MASKS leaves or makes, where MODEL.MASK_ON is True.
"""

import argparse
import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dyn_d2.engine.browsable import add_answer, import_fiftyone, names_of_labels, sample_of
from dyn_d2.engine.predictor import ImagePredictor, load_predictor
from dyn_d2.utils.errors import UserError

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.utils.logger import setup_logger

from .show_data import data_sets, records_as_trained

logger = logging.getLogger("dyn_d2.browse")


def main(argv: list[str] | None = None) -> int:
    """``dyn-d2 browse``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", help="all data sets of this config")
    parser.add_argument("--dataset", help="this registered one")
    parser.add_argument("--weights", default="", help="a checkpoint whose predictions are added")
    parser.add_argument("--images", type=int, default=0, help="so many of each, drawn at random (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="which images")
    parser.add_argument("--batch", type=int, default=1, help="images that the model sees at a time")
    parser.add_argument("--name", default="", help="in FiftyOne (default: that of the data set)")
    parser.add_argument("--overwrite", action="store_true", help="replace what FiftyOne has under that name")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write it there too")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that change the config")
    args = parser.parse_args(argv)
    if args.images < 0 or args.batch < 1:
        parser.error("--images has to be 0 or more, --batch 1 or more")
    if not (args.config_file or args.dataset or args.opts):
        parser.error("give --config-file, --dataset or keys of DATASETS.CUSTOM")
    setup_logger(name="dyn_d2")
    fiftyone = import_fiftyone()
    shown = _shown(fiftyone, args)
    predictor = load_predictor(args.weights) if args.weights else None
    for name, cfg in data_sets(args.config_file, args.dataset, args.opts):
        (records, said), metadata = _chosen(name, cfg, args.images, args.seed), MetadataCatalog.get(name)
        samples, targets = _samples(fiftyone, records, metadata, predictor, args.batch)
        data = fiftyone.Dataset(shown[name], overwrite=args.overwrite, persistent=True)
        data.mask_targets = targets
        data.save()
        data.add_samples(samples, progress=False)
        if args.export:
            data.export(export_dir=str(args.export / shown[name]), dataset_type=fiftyone.types.FiftyOneDataset)
        print(f"{len(samples)} images{said and f' ({said})'}: fiftyone app launch {shown[name]}")
    return 0


def _shown(fiftyone: Any, args: argparse.Namespace) -> dict[str, str]:
    """Data set -> its name in FiftyOne; what cannot be named so is told before anything is made."""
    names = [name for name, _ in data_sets(args.config_file, args.dataset, args.opts)]
    if args.name and len(names) > 1:
        raise UserError(f"--name {args.name} is one name, but the config has {', '.join(names)}: give --dataset.")
    shown = {name: args.name or name for name in names}
    taken = [name for name in shown.values() if fiftyone.dataset_exists(name) and not args.overwrite]
    if taken:
        raise UserError(
            f"FiftyOne has a data set {', '.join(taken)} already: give --name, or --overwrite to replace it."
        )
    return shown


def _chosen(name: str, cfg: CfgNode, images: int, seed: int) -> tuple[list[dict[str, Any]], str]:
    """Records drawn of a data set, and what there is to say of all of them."""
    records, said = records_as_trained(name, cfg)
    if "file_name" not in records[0]:
        raise UserError(f"the images of {name} lie in no files, which is what FiftyOne shows.")
    order = np.random.default_rng(seed).permutation(len(records))[: images or len(records)]
    return [records[i] for i in sorted(order)], said


def _samples(
    fiftyone: Any, records: Sequence[dict[str, Any]], metadata: Any, predictor: ImagePredictor | None, batch: int
) -> tuple[list[Any], dict[str, dict[int, str]]]:
    """The samples, and what the numbers in their label maps mean."""
    remaining, samples, answers = iter(records), [], []
    while part := list(islice(remaining, batch)):
        made = [sample_of(fiftyone, record, metadata) for record in part]
        if predictor is not None:
            answers = predictor.answer([np.asarray(read_image(record["file_name"], "RGB")) for record in part])
            for sample, answer in zip(made, answers, strict=True):
                add_answer(fiftyone, sample, answer, predictor.classes)
        samples += made
        if len(samples) // 100 > (len(samples) - len(made)) // 100:
            logger.info(f"{len(samples)} of {len(records)} images")
    return samples, names_of_labels(metadata, answers)
