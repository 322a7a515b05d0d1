"""The "poly" schedule of DeepLab (Chen et al., DeepLab, sec. 4.1.2): a power of the share of training that is left."""

from fvcore.common.param_scheduler import ParamScheduler
from torch.optim import Optimizer

from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler

POLY = "WarmupPolyLR"  # as in Detectron2's DeepLab project


class PolyParamScheduler(ParamScheduler):
    """(1 - progress) ** power, but not below ``ending``."""

    def __init__(self, power: float, ending: float = 0.0) -> None:
        self._power, self._ending = power, ending

    def __call__(self, where: float) -> float:
        return max((1.0 - min(where, 1.0)) ** self._power, self._ending)


def poly_schedule(cfg: CfgNode, optimizer: Optimizer) -> LRMultiplier:
    """The schedule of SOLVER.{MAX_ITER, POLY_LR_POWER, POLY_LR_CONSTANT_ENDING, WARMUP_*}.

    Raises:
        ValueError: the power is not positive.
    """
    solver = cfg.SOLVER
    if solver.POLY_LR_POWER <= 0:
        raise ValueError(f"SOLVER.POLY_LR_POWER is {solver.POLY_LR_POWER}: use a positive number.")
    schedule = WarmupParamScheduler(
        PolyParamScheduler(solver.POLY_LR_POWER, solver.POLY_LR_CONSTANT_ENDING),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)
