#!/usr/bin/env python
"""Train or evaluate what a config describes.

tools/train_net.py --config-file configs/TFA/digit_scenes.yaml OUTPUT_DIR output/base
tools/train_net.py --config-file ... --resume                   go on after a kill
tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/base/model_final.pth
torchrun --nproc-per-node 2 tools/train_net.py --config-file ...
"""

import argparse
from typing import Any

from dyn_d2.engine.launch import parse_args, run
from dyn_d2.engine.preflight import check_files, check_trainer
from dyn_d2.engine.setup import setup
from dyn_d2.engine.trainer import DynTrainer, evaluate
from dyn_d2.utils.errors import wrong_input


def main(args: argparse.Namespace) -> dict[str, Any] | None:
    """One process of the job. Returns the results of the last evaluation on the main process."""
    with wrong_input():
        cfg = setup(args)
        check_files(cfg)
        if args.eval_only:
            return evaluate(cfg)
        trainer = DynTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        if cfg.SOLVER.PREFLIGHT and not args.resume:
            check_trainer(trainer)
    return trainer.train()


if __name__ == "__main__":
    run(main, parse_args(__doc__))
