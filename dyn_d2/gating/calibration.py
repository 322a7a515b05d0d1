"""The threshold of a policy that makes evaluation cost what a budget says.

Training has noise or samples its gates, so that the share it runs at is not that of the hard decisions of evaluation.
The threshold (MODEL.POLICY.THRESHOLD) is what brings the two together; no label is looked at.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from dyn_d2.data.resumable import check_readable
from dyn_d2.engine.trainer import DynTrainer
from dyn_d2.gating.meta_arch.dynamic import find_policy
from dyn_d2.utils.errors import UserError

from detectron2.config import CfgNode

WIDEST = 6.0  # logarithm of the odds up to which thresholds are tried: 0.0025 to 0.9975


class Calibrated(NamedTuple):
    """A threshold, and the share of the dense multiply-adds that it gave on the images it was found on."""

    threshold: float
    share: float


def unlabelled_batches(cfg: CfgNode, images: int, batch: int = 32) -> list[list[dict[str, Any]]]:
    """Model inputs of evenly spread images of the first training set, prepared as in evaluation."""
    loader = DynTrainer.build_test_loader(cfg, cfg.DATASETS.TRAIN[0])
    count = len(loader.dataset)
    wanted = sorted({round(i * (count - 1) / max(images - 1, 1)) for i in range(min(images, count))})
    inputs = check_readable([loader.dataset[i] for i in wanted])
    return [inputs[i : i + batch] for i in range(0, len(inputs), batch)]


def executed_share(model: nn.Module, batches: Sequence[list[dict[str, Any]]]) -> float:
    """Executed multiply-adds of the gated network over all images, as a share of the dense ones, gates included."""
    executed = dense = 0.0
    with torch.no_grad():
        for batch in batches:
            routes = [output["route"] for output in model.eval()(batch)]
            executed += sum(route.executed for route in routes)
            dense += sum(route.dense for route in routes)
    return executed / dense


def calibrate(model: nn.Module, batches: Sequence[list[dict[str, Any]]], target: float, steps: int = 8) -> Calibrated:
    """The smallest threshold found, by bisection of its log-odds, with which the share is at most ``target``; it stays
    in the policy of ``model``.

    Args:
        batches: inputs of the model.
        target: share, gates and what always runs included.

    Raises:
        UserError: the policy has no threshold, or even the highest one leaves more.
    """
    policy: Any = find_policy(getattr(model, "backbone", None))
    if not isinstance(getattr(policy, "threshold", None), float):
        raise UserError("MODEL.POLICY.NAME: this policy has no threshold that could be calibrated to a budget.")

    def share_at(odds: float) -> Calibrated:
        policy.threshold = 1 / (1 + math.exp(-odds))
        return Calibrated(policy.threshold, executed_share(model, batches))

    low, high, best = -WIDEST, WIDEST, share_at(WIDEST)
    if best.share > target:
        raise UserError(
            f"MODEL.POLICY.BUDGET.SHARE is {target}, but {best.share:.1%} of the multiply-adds run whatever the gates "
            "say: give a larger share."
        )
    for _ in range(steps):
        middle = share_at((low + high) / 2)
        if middle.share <= target:
            best, high = middle, (low + high) / 2
        else:
            low = (low + high) / 2
    policy.threshold = best.threshold
    return best
