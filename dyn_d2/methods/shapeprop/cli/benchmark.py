"""Run a table of instance segmentation with few masks: methods x settings x seeds, with 95 % confidence intervals.

    dyn-d2 benchmark masks --config-file ShapeProp/digit_scenes.yaml \\
        --methods mask_rcnn,shapeprop,oracle --settings category,image_10,image_2 --seeds 0-2 \\
        --box-iterations 1000 --mask-iterations 300 --jobs 2 OUTPUT_DIR output/shapeprop SOLVER.AMP.ENABLED True

Finished trainings are not run again: the same command goes on where it was stopped, and one with more methods, settings
or seeds trains these alone. Writes benchmark.json, benchmark.md and benchmark.png into OUTPUT_DIR, about what the
command names: to have everything in the table, name the finished methods, settings and seeds too. On a CPU with
bfloat16 a training step takes 0.6 of the time with SOLVER.AMP.ENABLED True; with it MODEL.CHANNELS_LAST makes ShapeProp
slower (group norm).
"""

import argparse

from dyn_d2.config.read import read_cfg
from dyn_d2.engine.job_queue import numbers
from dyn_d2.engine.workers import add_options, workers_of
from dyn_d2.methods.shapeprop.benchmark import CAPTION, run, summarise
from dyn_d2.methods.shapeprop.trainings import METHODS, Schedule, cells, methods_of, plan

from detectron2.utils.logger import setup_logger


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--methods", default="mask_rcnn,shapeprop,oracle", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--method", nargs="+", action="append", default=[], metavar=("NAME", "BASE"),
                        help="another method: BASE with KEY VALUE ...; may be repeated; an option follows")  # fmt: skip
    parser.add_argument("--settings", default="category,image_10,image_2",
                        help="category: masks of INPUT.PARTIAL_MASKS.CLASSES; image_P: of P %% of images; "
                        "data_P: P %% of images, with their masks")  # fmt: skip
    parser.add_argument("--seeds", type=numbers, default=[0], help="such as 0-2")
    parser.add_argument("--box-iterations", type=int, default=0,
                        help="train a detector without masks first, one a seed for all methods")  # fmt: skip
    parser.add_argument("--mask-iterations", type=int, help="of the training with masks; default: the config's")
    parser.add_argument("--mask-rate", type=float, help="SOLVER.BASE_LR of the training with masks")
    parser.add_argument("--freeze-detector", action="store_true",
                        help="with masks only what predicts these learns; see FEATURE_CACHE")  # fmt: skip
    add_options(parser)
    parser.add_argument("--table", action="store_true", help="only write the table of what is trained")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    args = parser.parse_args(argv)
    if args.box_iterations < 0 or (args.mask_iterations is not None and args.mask_iterations < 1):
        parser.error("--mask-iterations has to be at least 1, --box-iterations at least 0")
    if args.freeze_detector and not args.box_iterations:
        parser.error("--freeze-detector needs a detector that is trained before: give --box-iterations")
    if any(len(method) < 2 for method in args.method):
        parser.error("--method needs a name and the method that it varies")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    setup_logger(name="dyn_d2")
    cfg = read_cfg(args.config_file, args.opts)
    known = methods_of(cfg, args.method)
    schedule = Schedule(
        args.mask_iterations or cfg.SOLVER.MAX_ITER, args.box_iterations, args.mask_rate, args.freeze_detector
    )
    names = dict.fromkeys([*args.methods.split(","), *(name for name, *_ in args.method)])
    plans = plan(
        args.config_file, args.opts, cells(list(names), args.settings.split(","), args.seeds, known), schedule, known
    )
    if not args.table:
        launcher = ["--num-gpus", str(args.num_gpus)]
        run(args.config_file, args.opts, plans, schedule, known, workers_of(args, cfg), launcher)
    output = next(iter(plans.values()))[-1].folder.parent
    text = summarise(output, plans, schedule, known)
    print(f"{text}\n\n{CAPTION}\n{output}/benchmark.json, benchmark.md, benchmark.png")
    return 0
