"""Train or evaluate what a config describes.

dyn-d2 train --config-file TFA/digit_scenes.yaml OUTPUT_DIR output/base
dyn-d2 train --config-file ... --resume                         go on after a kill
dyn-d2 train --config-file ... --eval-only MODEL.WEIGHTS output/base/model_final.pth
torchrun --nproc-per-node 2 -m dyn_d2 train --config-file ...
"""

from pathlib import Path

from dyn_d2.config.read import read_yaml
from dyn_d2.engine.launch import make_parser, parse_args, run
from dyn_d2.engine.training import train

EVALUATE = """Score a checkpoint on DATASETS.TEST.

dyn-d2 evaluate --weights output/base/model_final.pth OUTPUT_DIR output/base_eval
dyn-d2 evaluate --config-file TFA/digit_scenes.yaml --weights other.pth OUTPUT_DIR output/other_eval
"""


def main() -> None:
    """``dyn-d2 train``."""
    run(train, parse_args(make_parser(__doc__)))


def evaluate_main() -> None:
    """``dyn-d2 evaluate``: ``dyn-d2 train --eval-only``, of a file whose config lies beside it."""
    parser = make_parser(EVALUATE)
    parser.add_argument("--weights", default="", metavar="FILE", help="MODEL.WEIGHTS; without --config-file, the "
                        "config.yaml beside it is taken")  # fmt: skip
    args = parse_args(parser)
    args.eval_only = True
    if not args.weights and not args.config_file:
        parser.error("give --weights, or --config-file and MODEL.WEIGHTS")
    if args.weights:
        args.opts = ["MODEL.WEIGHTS", args.weights, *args.opts]
    if not args.config_file:
        saved = Path(args.weights).with_name("config.yaml")
        if not saved.is_file():
            parser.error(f"there is no config.yaml beside {args.weights}: name the config of its model (--config-file)")
        args.config_file = str(saved)
        args.opts = [*_saved_schedule(saved), *args.opts]
    run(train, args)


def _saved_schedule(config: Path) -> list[str]:
    """KEY VALUE, ... of the rate and the length that a saved config has: they are final, and must not be derived from
    those of the stage and scaled to the batch once more."""
    keys = ("BASE_LR", "MAX_ITER", "STEPS", "WARMUP_ITERS")
    solver = read_yaml(str(config)).get("SOLVER", {})
    return [word for key in keys if key in solver for word in (f"SOLVER.{key}", str(solver[key]))]
