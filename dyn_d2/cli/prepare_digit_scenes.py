"""Make DigitScenes, the small data set that the demo, the tests and the tables of dyn_d2 use.

dyn-d2 prepare digit-scenes                     # $DETECTRON2_DATASETS/digit_scenes, 1000 + 200 images
dyn-d2 prepare digit-scenes --num-train 4000 --seed 1 --root /data/more_digits
"""

import argparse
import os
import sys
from pathlib import Path

from dyn_d2.data.digit_scenes import DigitScenesSpec, SceneOptions, describe, generate_digit_scenes, write_variants


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line; the defaults are those of ``DigitScenesSpec``."""
    default, scene = DigitScenesSpec(), SceneOptions()
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--root", default=Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "digit_scenes", help="where to"
    )
    parser.add_argument("--num-train", type=int, default=default.num_train, help="training images")
    parser.add_argument("--num-val", type=int, default=default.num_val, help="validation images")
    parser.add_argument("--seed", type=int, default=default.seed, help="of all that is random")

    def add_range(option: str, kind: type, default: tuple, help: str) -> None:
        parser.add_argument(option, type=kind, default=default, help=help, nargs=2, metavar=("LOW", "HIGH"))

    add_range("--short-side", int, scene.short_side, "shorter side in pixels")
    add_range("--digits", int, scene.digits, "digits in an image")
    add_range("--clutter", int, scene.clutter, "other shapes in an image")
    add_range("--digit-size", float, scene.digit_size, "height of a digit / shorter side")
    parser.add_argument("--overwrite", action="store_true", help="replace DigitScenes of other parameters")
    parser.add_argument("--statistics", action="store_true", help="then count what the folder holds")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 2 after one line that says what is wrong."""
    options = parse_arguments(arguments)
    try:
        scene = SceneOptions(
            short_side=tuple(options.short_side),
            digits=tuple(options.digits),
            clutter=tuple(options.clutter),
            digit_size=tuple(options.digit_size),
        )
        spec = DigitScenesSpec(options.num_train, options.num_val, options.seed, scene)
        written = generate_digit_scenes(options.root, spec, options.overwrite, options.quiet)
        write_variants(options.root)
    except (ValueError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    state = "wrote" if written else "found, complete:"
    print(f"{state} {options.root} ({options.num_train} train and {options.num_val} val images)")
    if options.statistics:
        print(describe(options.root))
    return 0
