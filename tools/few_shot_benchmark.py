#!/usr/bin/env python3
"""Run a table of few-shot results: methods x splits x shots x seeds, with means and 95 % confidence intervals.

    python tools/few_shot_benchmark.py --config-file configs/TFA/digit_scenes.yaml \\
        --methods ft_full,tfa_fc,tfa_cos --splits 1 --shots 1,5,10 --seeds 0-4 --jobs 2 OUTPUT_DIR output/digits

Finished cells are not run again: the same command goes on where it was stopped, and more seeds add to it. Writes
benchmark.json, benchmark.md and one figure a split (novel AP against shots) into OUTPUT_DIR.
"""

import argparse
import math
import sys
from collections import defaultdict
from pathlib import Path

from dyn_d2.checkpoint import CheckpointError
from dyn_d2.engine.few_shot import StageError
from dyn_d2.engine.few_shot_benchmark import Cell, base_results, cells, run_cells
from dyn_d2.engine.setup import build_cfg
from dyn_d2.evaluation.aggregate import Estimate, aggregate, estimate, table
from dyn_d2.evaluation.figures import draw_ap_against_shots
from dyn_d2.evaluation.results import versions, write_results
from dyn_d2.utils.atomic import atomic_write

from detectron2.utils.logger import setup_logger

METRICS = ("AP", "bAP", "nAP", "AP50", "bAP50", "nAP50", "AP75", "bAP75", "nAP75")


def numbers(text: str) -> list[int]:
    """ "0-2,5" -> [0, 1, 2, 5]."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _as_json(values: dict[str, Estimate]) -> dict[str, dict[str, float]]:
    return {name: {"mean": e.mean, "half_width_95": e.half_width, "seeds": e.count} for name, e in values.items()}


def summarise(
    output: Path, results: dict[Cell, dict[str, float]], base: dict[int, dict[str, float]], seeds: list[int]
) -> str:
    """Write json, markdown and figures; returns the table."""
    by_cell: dict[tuple, dict[int, dict[str, float]]] = defaultdict(dict)
    for cell, metrics in results.items():
        by_cell[cell.split, cell.method, cell.shots][cell.seed] = metrics
    means = aggregate(by_cell, seeds)
    rows = []
    for split, metrics in base.items():
        # One base model serves all seeds of its split.
        rows.append(((str(split), "base only", "-"), {name: estimate([value]) for name, value in metrics.items()}))
        rows += [((str(s), method, str(k)), values) for (s, method, k), values in sorted(means.items()) if s == split]
        curves: dict[str, dict[int, tuple[float, float]]] = defaultdict(dict)
        for (s, method, k), values in means.items():
            if s == split and not math.isnan(values["nAP"].mean):
                curves[method][k] = values["nAP"].mean, values["nAP"].half_width
        draw_ap_against_shots(curves, output / f"nAP_split{split}.png")
    text = table(rows, ("split", "method", "K"), METRICS[:6])
    write_results(
        output / "benchmark.json",
        {
            "seeds": seeds,
            "interval": "1.96 s / sqrt(n)",
            "cells": {"/".join(names): _as_json(values) for names, values in rows},
            "single": {f"{c.split}/{c.method}/{c.shots}/seed{c.seed}": metrics for c, metrics in results.items()},
            "versions": versions(),
        },
    )
    with atomic_write(output / "benchmark.md") as file:
        file.write(f"{len(seeds)} seeds ({', '.join(map(str, seeds))}); mean ± 95 % confidence interval.\n\n{text}\n")
    return text


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--methods", default="ft_full,tfa_fc,tfa_cos", help="values of FEW_SHOT.METHOD")
    parser.add_argument("--splits", type=numbers, default=[1], help="such as 1-3")
    parser.add_argument("--shots", type=numbers, default=[1, 5, 10], help="such as 1,5,10")
    parser.add_argument("--seeds", type=numbers, default=[0], help="such as 0-9")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs of each training")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    args = parser.parse_args(argv)
    setup_logger(name="dyn_d2")
    try:
        wanted = cells(args.methods.split(","), args.splits, args.shots, args.seeds)
        results = run_cells(args.config_file, args.opts, wanted, args.jobs, ["--num-gpus", str(args.num_gpus)])
    except (StageError, CheckpointError, ValueError, FileNotFoundError) as error:
        print(f"few_shot_benchmark: {error}", file=sys.stderr)
        return 1
    output = Path(build_cfg(args.config_file, args.opts).OUTPUT_DIR)
    base = {split: base_results(args.config_file, args.opts, split) for split in args.splits}
    print(summarise(output, results, base, args.seeds))
    print(f"\n{len(args.seeds)} seeds; {output}/benchmark.json, benchmark.md, nAP_split*.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
