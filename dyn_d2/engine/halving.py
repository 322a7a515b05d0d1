"""A rate that is halved again and again, without steps ("Deciding How to Decide": 0.1 * 2^(-t / 10000))."""

from fvcore.common.param_scheduler import ExponentialParamScheduler
from torch.optim import Optimizer

from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler

HALVING = "HalvingLR"


def halving_schedule(cfg: CfgNode, optimizer: Optimizer) -> LRMultiplier:
    """The schedule of SOLVER.{MAX_ITER, HALVING_ITERS, WARMUP_*}: rate * 2 ** (-iteration / HALVING_ITERS).

    Raises:
        ValueError: HALVING_ITERS is not positive.
    """
    solver = cfg.SOLVER
    if solver.HALVING_ITERS <= 0:
        raise ValueError(f"SOLVER.HALVING_ITERS is {solver.HALVING_ITERS}: give the iterations that halve the rate.")
    schedule = WarmupParamScheduler(
        ExponentialParamScheduler(1.0, 2.0 ** (-solver.MAX_ITER / solver.HALVING_ITERS)),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)
