#!/usr/bin/env python
"""Few-shot training in one command: base -> surgery -> (novel -> surgery ->) fine-tuning -> evaluation.

    tools/few_shot_train.py --config-file configs/TFA/digit_scenes.yaml FEW_SHOT.METHOD tfa_cos FEW_SHOT.SHOTS 5

Finished stages are skipped, killed ones go on; the folders below OUTPUT_DIR are printed.
"""

from functools import partial

from dyn_d2.engine.few_shot import train_few_shot
from dyn_d2.engine.stages import train_as_told
from dyn_d2.utils.errors import run_tool

if __name__ == "__main__":
    run_tool(partial(train_as_told, train_few_shot, __doc__))
