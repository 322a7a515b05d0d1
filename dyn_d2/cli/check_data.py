"""Check annotations and images before training.

    dyn-d2 check-data --json train.json --images folder --base cat dog --novel bird
    dyn-d2 check-data --dataset coco_2017_val
    dyn-d2 check-data --config-file TFA/voc.yaml FEW_SHOT.SPLIT 2

Prints every problem with file, annotation id and remedy, and a table of the classes; exit status 1 if there is one.
Where there is none, the ground truth is handed to the evaluator as predictions: less than 100 is a problem too.
"""

import argparse
import sys
from pathlib import Path

from dyn_d2.config.derive import build_cfg
from dyn_d2.data.check import Report, check_coco_json, check_config, check_dataset, clean_json, summary
from dyn_d2.data.few_shot.sources import forget, load_source
from dyn_d2.data.registered import registered_records
from dyn_d2.data.validity.annotation import mask_defect
from dyn_d2.data.validity.coco import examine, is_masked, looks_like_lvis, read_json
from dyn_d2.data.validity.consumers import EVALUATION, LOADER, spoils
from dyn_d2.evaluation.perfect import check_perfect, not_scored
from dyn_d2.utils.atomic import write_json

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

PERFECT_IMAGES = 5000


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
    parser.add_argument(
        "--perfect-images",
        type=int,
        default=PERFECT_IMAGES,
        help=f"score perfect predictions of sets with up to this many images (default {PERFECT_IMAGES}), 0 for none",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that change the config")
    given = sys.argv[1:] if arguments is None else arguments
    if given and Path(given[0]).exists():
        parser.error(f"name what {given[0]} is: --json FILE --images FOLDER, --dataset NAME or --config-file FILE")
    options = parser.parse_args(arguments)
    if options.clean and not options.json:
        parser.error("--clean needs --json")
    return options


def run_checks(options: argparse.Namespace) -> list[Report]:
    """Do what the command line asks for."""
    read = not options.no_read
    if options.json:
        report = check_coco_json(options.json, options.images, read_images=read, base=options.base, novel=options.novel)
        return [report, *_score_json(report, options)]
    cfg = build_cfg(options.config_file or "", options.opts)
    if options.dataset:
        reports = check_dataset(options.dataset, read)
        return [*reports, *_score(reports, [options.dataset], cfg, options)]
    reports = check_config(cfg, read)
    return [*reports, *_score(reports, list(dict.fromkeys(cfg.DATASETS.TEST)), cfg, options)]


def _score(reports: list[Report], names: list[str], cfg: CfgNode, options: argparse.Namespace) -> list[Report]:
    """Perfect predictions of data sets without problems: what the loader refuses cannot be scored.

    Their masks are scored where a config says so, and without a config where every object has one.
    """
    if not options.perfect_images or any(spoils(p.kind, (LOADER, EVALUATION)) for r in reports for p in r.problems):
        return []
    return [
        check_perfect(name, cfg if options.config_file else _with_masks(cfg, name), options.perfect_images)
        for name in names
    ]


def _with_masks(cfg: CfgNode, name: str) -> CfgNode:
    """``cfg`` with MODEL.MASK_ON where every object of a data set has a sound mask."""
    objects = [(a, r) for r in registered_records(name) for a in r.get("annotations", ()) if not a.get("iscrowd")]
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.MASK_ON = bool(objects) and all(
        is_masked(a) and not mask_defect(a["segmentation"], r.get("width"), r.get("height")) for a, r in objects
    )
    return cfg


def _score_json(report: Report, options: argparse.Namespace) -> list[Report]:
    """Perfect predictions of a json that no data set is registered with."""
    if not options.perfect_images or "bad_json" in {problem.kind for problem in report.problems}:
        return []
    if report.images > options.perfect_images:  # said before the file is read again
        report.notes.append(not_scored(options.perfect_images))
        return []
    name, lvis = Path(options.json).name, looks_like_lvis(read_json(options.json))
    if name in DatasetCatalog:
        return []
    metadata = MetadataCatalog.get(name)
    metadata.set(json_file=options.json, image_root=options.images or "", evaluator_type="lvis" if lvis else "coco")
    DatasetCatalog.register(name, lambda: load_source(name))
    try:
        return _score([report], [name], build_cfg(), options)
    finally:
        forget(name)


def main(arguments: list[str] | None = None) -> int:
    """Check, print, and return the exit status: 0 fine, 1 problems, 2 nothing could be checked."""
    options = parse_arguments(arguments)
    try:
        reports = run_checks(options)
    except (KeyError, ValueError, OSError) as error:
        _complain(str(error.args[0] if isinstance(error, KeyError) else error))
        return 2
    for report in reports:
        print(report.text(options.per_kind))
    if options.report:
        write_json(options.report, [report.to_dict() for report in reports])
    if options.clean and not _clean(options, reports[0]):
        return 2
    return 0 if all(report.ok for report in reports) else 1


def _complain(message: str) -> None:
    """One line on stderr, which begins as those of all commands."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)


def _clean(options: argparse.Namespace, report: Report) -> bool:
    """Write the clean copy and say what is still wrong with it; False if there can be none."""
    if report.problems and report.problems[0].kind == "bad_json":
        _complain("--clean cannot fix a file that cannot be read")
        return False
    content = read_json(options.json)
    try:
        cleaned = clean_json(content, report.problems)
    except ValueError as error:
        _complain(f"--clean: {error}")
        return False
    write_json(options.clean, cleaned, indent=None)
    before, after = (len(value.get("annotations", ())) for value in (content, cleaned))
    print(f"wrote {Path(options.clean)} with {after} of {before} annotations")
    left = examine(cleaned, options.clean).problems
    if left:
        print(f"it still has what only you can decide: {summary(left, options.per_kind)}")
    return True
