"""Fit a base checkpoint to the classes of the next few-shot stage, by class name.

    dyn-d2 surgery --config-file TFA/voc.yaml --base output/base/model_final.pth \
        --output output/initial.pth FEW_SHOT.STAGE finetune FEW_SHOT.METHOD tfa_cos

The config names the classes and the head of the next stage. ``--novel`` takes the novel rows from a model of the novel
stage instead of N(0, 0.01). Checkpoints that do not name their classes (published ones) need ``--base-classes`` or
``--novel-classes``: names in row order, separated by commas, or a text file with a name in each line.
``--all-new``: the base model comes from another data set, and knows none of the classes (COCO to PASCAL).
"""

import argparse
from pathlib import Path

from dyn_d2.checkpoint import CheckpointError
from dyn_d2.checkpoint.checkpointer import METADATA
from dyn_d2.checkpoint.surgery import Source, save
from dyn_d2.config.derive import build_cfg
from dyn_d2.engine.few_shot import starting_checkpoint


def read_names(text: str) -> list[str]:
    """Class names from a file with a name in each line, or from a list with commas."""
    lines = Path(text).read_text(encoding="utf-8").splitlines() if Path(text).is_file() else text.split(",")
    return [line.strip() for line in lines if line.strip()]


def main(argv: list[str] | None = None) -> int:
    """Read, operate, write."""
    args = parse_args(argv)
    cfg = build_cfg(args.config_file, args.opts)
    if not cfg.FEW_SHOT.BENCHMARK:
        raise CheckpointError("FEW_SHOT.BENCHMARK is empty: the config has to name the classes of the next stage.")
    checkpoint = starting_checkpoint(
        cfg,
        Source.read(args.base, read_names(args.base_classes)),
        Source.read(args.novel, read_names(args.novel_classes)) if args.novel else None,
        seed=args.seed,
        all_new=args.all_new,
    )
    save(checkpoint, args.output)
    classes, novel = (checkpoint[METADATA][key] for key in ("classes", "novel_classes"))
    print(f"{args.output}: {len(classes)} classes, {len(novel)} of them novel")
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", metavar="FILE", help="config of the next stage")
    parser.add_argument("--base", required=True, metavar="FILE", help="checkpoint of the base model")
    parser.add_argument("--novel", default="", metavar="FILE", help="checkpoint of the novel stage")
    parser.add_argument("--output", required=True, metavar="FILE", help="where the result goes")
    parser.add_argument("--base-classes", default="", metavar="NAMES", help="names, if the base checkpoint has none")
    parser.add_argument("--novel-classes", default="", metavar="NAMES", help="names, if the novel checkpoint has none")
    parser.add_argument("--all-new", action="store_true", help="random rows for all classes, base classes too")
    parser.add_argument("--seed", type=int, default=None, help="of random rows, default FEW_SHOT.SEED")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    return parser.parse_args(argv)
