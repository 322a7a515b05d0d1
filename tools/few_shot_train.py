#!/usr/bin/env python
"""Few-shot training in one command: base -> surgery -> (novel -> surgery ->) fine-tuning -> evaluation.

    tools/few_shot_train.py --config-file configs/TFA/digit_scenes.yaml FEW_SHOT.METHOD tfa_cos FEW_SHOT.SHOTS 5

Finished stages are skipped, killed ones go on; the folders below OUTPUT_DIR are printed.
"""

import argparse
import logging
import sys

from dyn_d2.engine.few_shot import train_few_shot
from dyn_d2.utils.errors import run_tool


def main() -> None:
    """Run all stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", metavar="FILE", help="yaml of configs/TFA, or your own")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes of the machine, one for each GPU")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs, as for train_net.py")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="[few_shot_train] %(message)s", stream=sys.stdout)
    last = train_few_shot(args.config_file, args.opts, ["--num-gpus", str(args.num_gpus)])
    logging.getLogger("dyn_d2").info(f"fine-tuned model: {last.weights}\nresults: {last.folder / 'results.json'}")


if __name__ == "__main__":
    run_tool(main)
