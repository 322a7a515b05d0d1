"""Schedules of the learning rate that Detectron2 does not have, with its warm-up before them."""

import logging

from fvcore.common.param_scheduler import ExponentialParamScheduler, ParamScheduler
from torch.optim import Optimizer

from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler

logger = logging.getLogger(__name__)

POLY = "WarmupPolyLR"  # as in Detectron2's DeepLab project
HALVING = "HalvingLR"


class PolyParamScheduler(ParamScheduler):
    """(1 - progress) ** power, but not below ``ending``."""

    def __init__(self, power: float, ending: float = 0.0) -> None:
        self._power, self._ending = power, ending

    def __call__(self, where: float) -> float:
        return max((1.0 - min(where, 1.0)) ** self._power, self._ending)


def poly_schedule(cfg: CfgNode, optimizer: Optimizer) -> LRMultiplier:
    """The schedule of SOLVER.{MAX_ITER, POLY_LR_POWER, POLY_LR_CONSTANT_ENDING, WARMUP_*}: a power of the share of
    training that is left (Chen et al., DeepLab, sec. 4.1.2).

    Raises:
        ValueError: the power is not positive.
    """
    solver = cfg.SOLVER
    if solver.POLY_LR_POWER <= 0:
        raise ValueError(f"SOLVER.POLY_LR_POWER is {solver.POLY_LR_POWER}: use a positive number.")
    return _after_warm_up(cfg, optimizer, PolyParamScheduler(solver.POLY_LR_POWER, solver.POLY_LR_CONSTANT_ENDING))


def halving_schedule(cfg: CfgNode, optimizer: Optimizer) -> LRMultiplier:
    """The schedule of SOLVER.{MAX_ITER, HALVING_ITERS, WARMUP_*}: rate * 2 ** (-iteration / HALVING_ITERS), without
    steps ("Deciding How to Decide").

    Raises:
        ValueError: HALVING_ITERS is not positive.
    """
    solver = cfg.SOLVER
    if solver.HALVING_ITERS <= 0:
        raise ValueError(f"SOLVER.HALVING_ITERS is {solver.HALVING_ITERS}: give the iterations that halve the rate.")
    return _after_warm_up(
        cfg, optimizer, ExponentialParamScheduler(1.0, 2.0 ** (-solver.MAX_ITER / solver.HALVING_ITERS))
    )


def _after_warm_up(cfg: CfgNode, optimizer: Optimizer, schedule: ParamScheduler) -> LRMultiplier:
    solver = cfg.SOLVER
    warm_up = min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0)
    schedule = WarmupParamScheduler(schedule, solver.WARMUP_FACTOR, warm_up, solver.WARMUP_METHOD)
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)


def warn_of_long_warm_up(cfg: CfgNode) -> None:
    """Log that the warm-up takes more than half of the training: the rate ends its rise where the schedule is by then,
    which is near 0 for a cosine or a power, and may never be near SOLVER.BASE_LR."""
    solver = cfg.SOLVER
    if 2 * solver.WARMUP_ITERS <= solver.MAX_ITER:
        return
    share = min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0)
    logger.warning(
        f"SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS} is {share:.0%} of the {solver.MAX_ITER} iterations, so that most "
        f"of them have a rate far below SOLVER.BASE_LR: set SOLVER.WARMUP_ITERS {solver.MAX_ITER // 10}, for example."
    )
