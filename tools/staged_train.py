#!/usr/bin/env python
"""Train a policy in all of its stages with one command: SkipNet's sp and hrl, DeepMoE's joint and finetune.

    tools/staged_train.py --config-file configs/SkipNet/cifar.yaml OUTPUT_DIR output/skipnet

Each stage has the folder OUTPUT_DIR/STAGE. Finished stages are skipped, killed ones go on.
"""

from functools import partial

from dyn_d2.engine.stages import train_as_told
from dyn_d2.gating.stages import train_in_stages
from dyn_d2.utils.errors import run_tool

if __name__ == "__main__":
    run_tool(partial(train_as_told, train_in_stages, __doc__))
