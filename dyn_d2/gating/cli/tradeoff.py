"""Accuracy against executed multiply-adds and against milliseconds, of several checkpoints or of one at several values.

    dyn-d2 tradeoff --config-file X.yaml --weights a.pth b.pth --output output/tradeoff
    dyn-d2 tradeoff --config-file X.yaml --weights a.pth --thresholds 0.3 0.5 0.7 --output output/tradeoff
    dyn-d2 tradeoff --config-file X.yaml --weights a.pth --sweep INPUT.MIN_SIZE_TEST 400 600 --output ...
    dyn-d2 tradeoff --weights output/a/model_final.pth output/b/model_final.pth --output ...

Every checkpoint is also run with all of its gates forced open: the dense network with the same weights, beside which
the others stand. Without --config-file each has the config.yaml beside it, so that different networks stand in one
figure. Writes tradeoff.json, tradeoff.md and tradeoff.png; the same command again evaluates only what is new.
Times are those of the models alone, after warm-up, taken in turns in this process.
"""

import argparse
from pathlib import Path

from dyn_d2.config.names import find_config
from dyn_d2.gating.reports.route_statistics import run_names
from dyn_d2.gating.reports.tradeoff import draw, measure, plan, table, time_points
from dyn_d2.utils.atomic import atomic_write, write_json

from detectron2.utils.logger import setup_logger


def _sweep(args: argparse.Namespace, parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    sweep = {key: values for key, *values in args.sweep}
    if not all(sweep.values()):
        parser.error("--sweep needs a key and at least one value")
    return {**({"MODEL.POLICY.THRESHOLD": args.thresholds} if args.thresholds else {}), **sweep}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", help="of all checkpoints; without it, the config.yaml beside each")
    parser.add_argument("--weights", nargs="+", required=True, help="checkpoints")
    parser.add_argument("--output", required=True, help="folder for everything")
    parser.add_argument("--thresholds", nargs="+", default=[], help="values of MODEL.POLICY.THRESHOLD")
    parser.add_argument("--sweep", nargs="+", action="append", default=[], metavar=("KEY", "VALUE"),
                        help="any config key and its values; may be given several times")  # fmt: skip
    parser.add_argument("--batch", type=int, default=8, help="batch size to time beside 1")
    parser.add_argument("--timed", type=int, default=50, help="timed calls of the model at each batch size")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for all runs")
    args = parser.parse_args(argv)
    if min(args.batch, args.timed) < 1:
        parser.error("--batch and --timed have to be at least 1")
    setup_logger(name="dyn_d2")
    output, batches = Path(args.output), sorted({1, args.batch})
    points = plan(
        list(dict.fromkeys(args.weights)), _sweep(args, parser), args.config_file and find_config(args.config_file)
    )
    folder, records = output / "points", []
    for number, point in enumerate(points, 1):
        print(f"{number} of {len(points)}: {point.weights}, {point.name}", flush=True)
        records.append(measure(point, args.opts, folder))
    print(f"timing, {len(points)} models in turns", flush=True)
    times = time_points(points, args.opts, folder, batches, args.timed)
    records = [{**record, **timed} for record, timed in zip(records, times, strict=True)]
    write_json(output / "tradeoff.json", records)
    paths = list(dict.fromkeys(args.weights))
    names = dict(zip(paths, run_names(paths), strict=True))
    text = table(records, names)
    devices = ", ".join(dict.fromkeys(f"{r['device']} ({r['dtype']}, {r['threads']} threads)" for r in records))
    with atomic_write(output / "tradeoff.md") as file:
        counts = "GFLOPs: 1e9 multiply-adds, mean per image, of the whole model where counted"
        file.write(f"{text}\n\n{counts}. Times on {devices}.\n")
    print(f"\n{text}\n\n{draw(records, names, output / 'tradeoff.png')}")
    return 0
