"""Check annotations and images before training.

    dyn-d2 check-data --json train.json --images folder --base cat dog --novel bird
    dyn-d2 check-data --dataset coco_2017_val
    dyn-d2 check-data --config-file TFA/voc.yaml FEW_SHOT.SPLIT 2

Prints every problem with file, annotation id and remedy, and a table of the classes; exit status 1 if there is one.
"""

import argparse
import sys
from pathlib import Path

from dyn_d2.config.derive import build_cfg
from dyn_d2.data.check import Report, check_coco_json, check_config, check_dataset, clean_json
from dyn_d2.data.validity.coco import read_json
from dyn_d2.utils.atomic import write_json


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--json", help="annotations in COCO or LVIS format")
    what.add_argument("--dataset", help="a registered data set")
    what.add_argument("--config-file", help="check all data sets of this config")
    parser.add_argument("--images", help="folder of the images of --json; without it images are not looked at")
    parser.add_argument("--base", nargs="+", default=[], help="base class names, for --json")
    parser.add_argument("--novel", nargs="+", default=[], help="novel class names, for --json")
    parser.add_argument("--no-read", action="store_true", help="look whether images are there, but do not open them")
    parser.add_argument("--per-kind", type=int, default=20, help="problems of a kind to print, 0 for all")
    parser.add_argument("--report", help="write everything to this json too")
    parser.add_argument("--clean", help="write a copy of --json without the annotations and images that have problems")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that change the config")
    options = parser.parse_args(arguments)
    if options.clean and not options.json:
        parser.error("--clean needs --json")
    return options


def run_checks(options: argparse.Namespace) -> list[Report]:
    """Do what the command line asks for."""
    if options.json:
        return [
            check_coco_json(
                options.json, options.images, read_images=not options.no_read, base=options.base, novel=options.novel
            )
        ]
    if options.dataset:
        return check_dataset(options.dataset, not options.no_read)
    return check_config(build_cfg(options.config_file, options.opts), not options.no_read)


def main(arguments: list[str] | None = None) -> int:
    """Check, print, and return the exit status: 0 fine, 1 problems, 2 nothing could be checked."""
    options = parse_arguments(arguments)
    try:
        reports = run_checks(options)
    except (KeyError, ValueError, OSError) as error:
        print(f"check_data: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 2
    for report in reports:
        print(report.text(options.per_kind))
    if options.report:
        write_json(options.report, [report.to_dict() for report in reports])
    if options.clean:
        if reports[0].problems and reports[0].problems[0].kind == "bad_json":
            print("check_data: --clean cannot fix a file that cannot be read", file=sys.stderr)
        else:
            write_json(options.clean, clean_json(read_json(options.json), reports[0].problems), indent=None)
            print(f"wrote {Path(options.clean)}")
    return 0 if all(report.ok for report in reports) else 1
