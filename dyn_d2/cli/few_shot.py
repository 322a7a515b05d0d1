"""Few-shot training in one command: base -> surgery -> (novel -> surgery ->) fine-tuning -> evaluation.

    dyn-d2 few-shot --config-file TFA/digit_scenes.yaml FEW_SHOT.SHOTS 5 OUTPUT_DIR output/digits

Finished stages are skipped, killed ones go on; the folders below OUTPUT_DIR are printed.
"""

from dyn_d2.engine.few_shot import plan
from dyn_d2.engine.stages import train_all


def main() -> int:
    """``dyn-d2 few-shot``."""
    return train_all(plan, __doc__)
