"""Pictures of data sets before anything is trained on them: boxes, masks, label maps, classes, K-shot sets.

    dyn-d2 show-data --config-file my_classes.yaml --output pictures
    dyn-d2 show-data --dataset coco_2017_val --images 24

One picture a data set, of images drawn at random (--seed); of few-shot sets all shots, a row a class. With a few-shot
config, the sets of the base and of the fine-tuning stage are drawn, unless FEW_SHOT.STAGE names one. Sets of
DATASETS.TRAIN are drawn with the masks that INPUT.PARTIAL_MASKS leaves or makes, where MODEL.MASK_ON is True.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dyn_d2.config.derive import build_cfg
from dyn_d2.data.few_shot.stages import BASE, FINETUNE
from dyn_d2.data.partial_masks import with_masks_left, words_on_masks
from dyn_d2.data.registered import registered_records, unregistered
from dyn_d2.data.validity.coco import DataError
from dyn_d2.evaluation.data_figures import COLUMNS, draw_records
from dyn_d2.utils.atomic import atomic_write

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

MOST_SHOTS = 10  # of a class that are drawn


def main(argv: list[str] | None = None) -> int:
    """``dyn-d2 show-data``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", help="draw all data sets of this config")
    parser.add_argument("--dataset", help="draw this registered one")
    parser.add_argument("--output", type=Path, default=Path("output/data"), help="folder (default: %(default)s)")
    parser.add_argument("--images", type=int, default=12, help="how many of each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which images")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that change the config")
    args = parser.parse_args(argv)
    if args.images < 1:
        parser.error("--images has to be 1 or more")
    if not (args.config_file or args.dataset or args.opts):
        parser.error("give --config-file, --dataset or keys of DATASETS.CUSTOM")
    args.output.mkdir(parents=True, exist_ok=True)
    for name, cfg in data_sets(args.config_file, args.dataset, args.opts):
        file, words = _draw(name, cfg, args)
        print(f"{file}: {words}")
    return 0


def data_sets(config_file: str, dataset: str | None, opts: Sequence[str]) -> Iterator[tuple[str, CfgNode]]:
    """Names of the data sets of a config, each while it is registered and with the config that uses it, or of one that
    is asked for.

    Raises:
        ValueError: none is registered.
    """
    cfg = build_cfg(config_file, opts)
    if dataset:
        if said := unregistered([dataset]):
            raise ValueError(said)
        yield dataset, cfg
        return
    stages = [BASE, FINETUNE] if cfg.FEW_SHOT.BENCHMARK and "FEW_SHOT.STAGE" not in opts[::2] else [cfg.FEW_SHOT.STAGE]
    seen: set[str] = set()
    for stage in stages:
        cfg = build_cfg(config_file, [*opts, "FEW_SHOT.STAGE", stage])
        names = [name for key in ("TRAIN", "VAL", "TEST") for name in cfg.DATASETS[key] if name not in seen]
        seen |= set(names)
        if not seen:
            raise ValueError("the config names no data set: set DATASETS.CUSTOM, or DATASETS.TRAIN and TEST.")
        yield from ((name, cfg) for name in names)


def records_as_trained(name: str, cfg: CfgNode) -> tuple[Sequence[dict[str, Any]], str]:
    """The records of a data set, of training with the masks that are left there, and what there is to say of them.

    Raises:
        DataError: it has no image.
    """
    if not cfg.MODEL.MASK_ON or name not in cfg.DATASETS.TRAIN:
        records, said = registered_records(name), ""
    else:
        # A share of the images is one of all sets that are trained on.
        every = [{**record, "dataset": one} for one in cfg.DATASETS.TRAIN for record in registered_records(one)]
        records = [record for record in with_masks_left(cfg, every) if record["dataset"] == name]
        said = words_on_masks(records) if any("annotations" in record for record in records) else ""
    if not records:
        raise DataError(f"data set {name} has no image.")
    return records, said


def _draw(name: str, cfg: CfgNode, args: argparse.Namespace) -> tuple[Path, str]:
    (records, said), metadata = records_as_trained(name, cfg), MetadataCatalog.get(name)
    shots = (metadata.get("few_shot", None) or {}).get("shots") if metadata.get("shots_file", None) else None
    if shots and all(len(record["annotations"]) == 1 for record in records):
        chosen, columns = _by_class(records, len(metadata.thing_classes), args.images)
    else:
        order = np.random.default_rng(args.seed).permutation(len(records))[: args.images]
        chosen, columns = [records[i] for i in sorted(order)], COLUMNS
    objects = sum(len(record.get("annotations", ())) for record in records)
    words = f"{len(records)} images" + (f", {objects} objects" if objects else "") + f", {len(chosen)} drawn"
    words += f"; {said}" if said else ""
    path = args.output / f"{name}.png"
    figure = draw_records(chosen, metadata, columns, f"{name}: {words}")
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png")
    return path, words


def _by_class(records: Sequence[dict[str, Any]], classes: int, images: int) -> tuple[list[dict[str, Any]], int]:
    """Records of one object each in rows of their classes, and how many a row has."""
    rows: list[list[dict[str, Any]]] = [[] for _ in range(classes)]
    for record in records:
        rows[record["annotations"][0]["category_id"]].append(record)
    columns = min(max(map(len, rows)), MOST_SHOTS, max(images, 1))
    return [record for row in rows for record in row[:columns]], columns
