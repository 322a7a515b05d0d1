"""Run a table of few-shot results: methods x splits x shots x seeds, with means and 95 % confidence intervals.

    dyn-d2 benchmark few-shot --config-file TFA/digit_scenes.yaml \\
        --methods ft_full,tfa_fc,tfa_cos --splits 1 --shots 1,5,10 --seeds 0-4 --jobs 2 OUTPUT_DIR output/digits
    dyn-d2 benchmark few-shot ... --cluster auto --cores 4        the same on all machines of a cluster of Ray

Finished cells are not run again: the same command goes on where it was stopped, more seeds add to it, and other
--metrics cost nothing. --differences A:B adds the difference of methods A and B over the seeds that both have. Writes
benchmark.json, benchmark.md and figures (novel AP against shots, and its mean over the first 1, 2 ... seeds) into
OUTPUT_DIR.
"""

import argparse
from pathlib import Path

from dyn_d2.engine.few_shot_benchmark import cells, plan_cells, run_cells, seeds_by_method
from dyn_d2.engine.few_shot_table import TableStyle, caption, read_metrics, read_pairs, summarise
from dyn_d2.engine.job_queue import numbers
from dyn_d2.engine.workers import add_options, workers_of
from dyn_d2.evaluation.aggregate import INTERVALS
from dyn_d2.method import few_shot_methods

from detectron2.utils.logger import setup_logger


def main(argv: list[str] | None = None) -> int:
    known = few_shot_methods()
    usual = [name for name, method in known.items() if not (method.detector or method.stage or method.variant)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--methods",
        default=",".join(usual),
        help=f"of {', '.join(known)}; NAME:0-4 for other seeds than --seeds (default: %(default)s)",
    )
    parser.add_argument("--splits", type=numbers, default=[1], help="such as 1-3")
    parser.add_argument("--shots", type=numbers, default=[1, 5, 10], help="such as 1,5,10")
    parser.add_argument("--seeds", type=numbers, default=[0], help="such as 0-9")
    add_options(parser)
    parser.add_argument("--metrics", default="", help="columns, such as nAP50,nAP75,nAR100,APr")
    parser.add_argument("--differences", default="", metavar="A:B,...", help="rows of A minus B, seed by seed")
    parser.add_argument(
        "--interval", default="t", choices=list(INTERVALS), help="normal: 1.96 s / sqrt(n), as published"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    args = parser.parse_args(argv)
    setup_logger(name="dyn_d2")
    seeds = seeds_by_method(args.methods, args.seeds)
    style = TableStyle(
        read_metrics(args.metrics) if args.metrics else (),
        args.interval,
        read_pairs(args.differences, seeds) if args.differences else (),
    )
    wanted = cells(seeds, args.splits, args.shots, args.seeds)
    plans = plan_cells(args.config_file, args.opts, wanted)
    cfg = plans[wanted[0]][0].cfg
    run_cells(args.config_file, args.opts, plans, workers_of(args, cfg), ["--num-gpus", str(args.num_gpus)])
    output = Path(cfg.OUTPUT_DIR)
    text = summarise(output, plans, seeds, style)
    print(f"{text}\n\n{caption(seeds, style)}\n{output}/benchmark.json, benchmark.md, *_split*.png")
    return 0
