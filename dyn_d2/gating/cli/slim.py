"""From a trained network and a budget to a gated network that computes less, and a control to judge it by.

    dyn-d2 slim --config-file X.yaml MODEL.WEIGHTS plain.pth MODEL.POLICY.BUDGET.SHARE 0.65 OUTPUT_DIR output/slim
    dyn-d2 slim --config-file X.yaml MODEL.TIMM.WEIGHTS pretrained SLIM.PLAIN.MAX_ITER 2000 ...

X.yaml is that of the network without gates; its backbone gets them. Gates learn (SLIM.LEARN_SHARE of SOLVER.MAX_ITER,
at a constant rate), their threshold is calibrated to the budget, then they are fixed while the network trains on its
routes (the rest, the rate falls to 0). The control trains on without gates for as long. Writes slim.md, slim.json,
slim.png and routes/index.html to OUTPUT_DIR. Finished trainings are skipped, killed ones go on.
"""

import argparse
import logging
import sys

from dyn_d2.engine.launch import processes
from dyn_d2.gating.reports.slim import report, table
from dyn_d2.gating.slim import Slimming, slim


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", metavar="FILE", help="name of a config, or your own yaml")
    parser.add_argument("--num-gpus", type=processes, default=1, help="processes of the machine, one for each GPU")
    parser.add_argument("--batch", type=int, default=8, help="batch size to time beside 1")
    parser.add_argument("--timed", type=int, default=50, help="timed calls of each model at each batch size")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs, as for dyn-d2 train")
    args = parser.parse_args(argv)
    if min(args.batch, args.timed) < 1:
        parser.error("--batch and --timed have to be at least 1")
    logging.basicConfig(level=logging.INFO, format="[slim] %(message)s", stream=sys.stdout)
    done = slim(args.config_file, args.opts, ["--num-gpus", str(args.num_gpus)])
    output = Slimming.of(args.config_file, args.opts).folder
    found = report(done, output, sorted({1, args.batch}), args.timed)
    print(f"\n{table(found['networks'], found)}\n\n{output / 'slim.png'}\n{output / 'routes' / 'index.html'}")
    print(f"model: {done.gated.weights}")
    return 0
