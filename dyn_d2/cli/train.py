"""Train or evaluate what a config describes.

dyn-d2 train --config-file TFA/digit_scenes.yaml OUTPUT_DIR output/base
dyn-d2 train --config-file ... --resume                         go on after a kill
dyn-d2 train --config-file ... --eval-only MODEL.WEIGHTS output/base/model_final.pth
torchrun --nproc-per-node 2 -m dyn_d2 train --config-file ...
"""

from pathlib import Path

from dyn_d2.checkpoint.files import no_file
from dyn_d2.config.output_dir import is_below
from dyn_d2.config.read import flatten, read_yaml
from dyn_d2.engine.launch import make_parser, parse_args, run
from dyn_d2.engine.training import train
from dyn_d2.utils.errors import UserError

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
        if "://" not in args.weights and not Path(args.weights.partition("?")[0]).is_file():
            raise UserError(no_file(args.weights))
    if not args.config_file:
        saved = Path(args.weights).with_name("config.yaml")
        if not saved.is_file():
            parser.error(f"there is no config.yaml beside {args.weights}: name the config of its model (--config-file)")
        args.config_file = str(saved)
        args.given = _final_keys(saved, args.opts)
    run(train, args)


_OF_STAGES = ("SOLVER.SECOND_STAGE", "SOLVER.FIXED_STAGE")  # what SOLVER itself was derived from


def _final_keys(config: Path, opts: list[str]) -> list[str]:
    """The keys of a saved config, whose values are final: derived once more, or scaled to the batch, they would be
    others. Left out are the tasks that data sets are made from, and where one is given anew the data sets."""
    makers = ("FEW_SHOT", "ZERO_SHOT", "DATASETS.CUSTOM", "CLASSIFICATION.CUSTOM")
    saved = flatten(read_yaml(str(config)))
    made = saved.get("FEW_SHOT.BENCHMARK") or any(is_below(key, makers) for key in opts[::2])
    sources = (*makers, *_OF_STAGES, *(("DATASETS",) if made else ()))
    return [key for key in saved if not is_below(key, sources)]
