"""Train a policy in all of its stages with one command: SkipNet's sp and hrl, DeepMoE's joint and finetune.

    dyn-d2 stages --config-file SkipNet/cifar.yaml OUTPUT_DIR output/skipnet

Each stage has the folder OUTPUT_DIR/STAGE. Finished stages are skipped, killed ones go on.
"""

from dyn_d2.engine.stages import train_all
from dyn_d2.gating.stages import plan


def main() -> int:
    """``dyn-d2 stages``."""
    return train_all(plan, __doc__)
