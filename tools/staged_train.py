#!/usr/bin/env python
"""Train a policy in all of its stages with one command: SkipNet's sp and hrl, DeepMoE's joint and finetune.

    tools/staged_train.py --config-file configs/SkipNet/cifar.yaml OUTPUT_DIR output/skipnet

Each stage has the folder OUTPUT_DIR/STAGE. Finished stages are skipped, killed ones go on.
"""

import argparse
import logging
import sys

from dyn_d2.engine.policy_stages import train_in_stages
from dyn_d2.utils.errors import run_tool


def main() -> None:
    """Run all stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", metavar="FILE", help="yaml with a policy that has stages")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes of the machine, one for each GPU")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs, as for train_net.py")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="[staged_train] %(message)s", stream=sys.stdout)
    last = train_in_stages(args.config_file, args.opts, ["--num-gpus", str(args.num_gpus)])
    logging.getLogger("dyn_d2").info(f"model: {last.weights}\nresults: {last.folder / 'results.json'}")


if __name__ == "__main__":
    run_tool(main)
