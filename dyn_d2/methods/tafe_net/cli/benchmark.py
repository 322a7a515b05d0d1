"""Run a table about classes that are given by a description: methods, splits and seeds, with 95 % intervals.

    dyn-d2 benchmark descriptions --config-file TAFENet/voc_crops.yaml --unseen bird,bus,cow,motorbike,sofa \\
        --seeds 0-4 --calibrate OUTPUT_DIR output/crops
    dyn-d2 benchmark descriptions --config-file TAFENet/low_shot.yaml --seeds 0 --methods tafe_net \\
        --sets imagenet_low_shot_1_exp1,imagenet_low_shot_1_exp2 OUTPUT_DIR output/low_shot

Each of --sets and each --unseen is a split; several are averaged too. Of one's own data (ZERO_SHOT.CUSTOM), what is to
be chosen is chosen on folds of the training images: the regularisers of ESZSL, a penalty of seen classes (--calibrate),
and keys with several values (--choose SOLVER.MAX_ITER=100,200). Finished trainings are not run again. Writes
benchmark.json and benchmark.md into OUTPUT_DIR.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dyn_d2.engine.job_queue import numbers, run_pending
from dyn_d2.engine.stages import Stage
from dyn_d2.engine.workers import ThisProcess, Training, Workers, add_options, workers_of
from dyn_d2.methods.tafe_net.benchmark import CAPTION, Cell, kind_of, measure_all, summarise
from dyn_d2.methods.tafe_net.choice import Choice, choose, grid
from dyn_d2.methods.tafe_net.trainings import CLOSED, METHODS, Planner, plan_one, splits_of, train_here

from detectron2.utils.logger import setup_logger


def names(text: str) -> list[str]:
    """ "a,b" -> ["a", "b"].

    Raises:
        ValueError: not a single one.
    """
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise ValueError("name at least one.")
    return found


def setting(text: str) -> tuple[str, list[str]]:
    """ "KEY=a,b" -> (KEY, [a, b]).

    Raises:
        ValueError: not of that form.
    """
    key, sign, values = text.partition("=")
    if not sign:
        raise ValueError(f"{text} is not KEY=VALUE,VALUE.")
    return key, names(values)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--methods", type=names, default=list(METHODS), help=f"of {', '.join(METHODS)} (default: all)")
    parser.add_argument("--sets", type=names, default=[], help="data sets by name, without _train and _test")
    parser.add_argument("--unseen", type=names, action="append", default=[], metavar="CLASS,CLASS",
                        help="of ZERO_SHOT.CUSTOM; may be repeated")  # fmt: skip
    parser.add_argument("--seeds", type=numbers, default=[0], help="such as 0-4")
    parser.add_argument("--choose", type=setting, action="append", default=[], metavar="KEY=VALUE,VALUE",
                        help="of TAFE-Net, on the folds; may be repeated")  # fmt: skip
    parser.add_argument("--calibrate", action="store_true", help="a penalty of seen classes, chosen on the folds")
    add_options(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.methods) - METHODS.keys())
    if unknown:
        parser.error(f"unknown method {', '.join(unknown)}: use {', '.join(METHODS)}")
    if args.sets and args.unseen:
        parser.error("--sets and --unseen are two ways to name splits: use one")
    return args


def choices_of(args: argparse.Namespace, planner: Planner, kind: str, splits: list) -> dict[tuple[str, str], Choice]:
    """What the folds say of each method and split; nothing where there is nothing to choose.

    Raises:
        ValueError: something is to be chosen, but the data have no folds.
    """
    settings = grid(dict(args.choose))
    made = {}
    for split in splits:
        has_folds = bool(planner.cfg(split).ZERO_SHOT.CUSTOM.TRAIN) and kind == "zero_shot"
        for method in args.methods:
            needed = method in CLOSED or args.calibrate or len(settings) > 1
            if needed and not has_folds:
                raise ValueError(
                    f"{method} has something to choose, but {split.name} has no folds: only ZERO_SHOT.CUSTOM with "
                    "CLASSES has them. Leave out --choose and --calibrate, and eszsl among --methods."
                )
            made[method, split.name] = (
                choose(method, split, planner, args.seeds[0], settings, args.calibrate)
                if needed
                else Choice(settings[0], None, planner.cfg(split).ZERO_SHOT.SEEN_PENALTY, {}, {})
            )
    return made


def check_keys(args: argparse.Namespace, planner: Planner, splits: list) -> None:
    """
    Raises:
        ValueError: keys that other options decide, or that the table has no place for.
    """
    for split in splits:
        keys = planner.cfg(split).ZERO_SHOT
        if keys.CLASSES:
            raise ValueError(
                f"ZERO_SHOT.CLASSES {keys.CLASSES} adds classes that have no images here: leave it out; "
                "dyn-d2 train evaluates with them."
            )
        if args.calibrate and keys.SEEN_PENALTY:
            raise ValueError(
                f"ZERO_SHOT.SEEN_PENALTY is {keys.SEEN_PENALTY:g}, and --calibrate chooses it: give one of them."
            )


def train(args: argparse.Namespace, planner: Planner, cells: dict[Cell, tuple]) -> None:
    """Train what is not trained yet: in this process, or where the options say.

    Args:
        cells: the arguments of ``plan_one`` by cell.
    """
    plans = {cell: [planner.stage(*how)] for cell, how in cells.items()}
    stages = {stage.folder: stage for (stage,) in plans.values()}

    def training(stage: Stage, cell: Cell) -> Training:
        keys = ("method", "split", "seed", "more")
        planned = partial(plan_one, **dict(zip(keys, cells[cell], strict=True)))
        launcher = ("--num-gpus", str(args.num_gpus))
        return Training(planned, args.config_file, tuple(args.opts), stage.folder, launcher)

    workers: Callable[[], Workers] = workers_of(args, next(iter(stages.values())).cfg)
    if not args.cluster and args.jobs in (None, 1) and args.num_gpus == 1:
        workers = partial(ThisProcess, lambda training: train_here(stages[training.folder]))
    run_pending(plans, training, workers)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    setup_logger(name="dyn_d2")
    planner = Planner(args.config_file, tuple(args.opts))
    splits = splits_of(args.sets, args.unseen)
    check_keys(args, planner, splits)
    kind = kind_of(planner, splits)
    choices = choices_of(args, planner, kind, splits)
    cells = {
        Cell(method, split.name, seed): (method, split, seed, choices[method, split.name].keys)
        for seed in args.seeds
        for split in splits
        for method in args.methods
        if method not in CLOSED
    }
    if cells:
        train(args, planner, cells)
    found = measure_all(kind, planner, args.methods, splits, args.seeds, choices)
    output = Path(planner.cfg(splits[0]).OUTPUT_DIR)
    command = {"config_file": args.config_file, "opts": args.opts, "calibrated": args.calibrate}
    print(f"{summarise(output, kind, found, splits, choices, command)}\n\n{CAPTION}\n{output}/benchmark.json")
    return 0
