"""Learning rate as a function of training progress, with a warm-up."""

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupParamScheduler(CompositeParamScheduler):
    """Another schedule behind a ramp.

    Args:
        scheduler: the schedule proper, a function of progress in [0, 1).
        warmup_factor: where the ramp begins, as a fraction of ``scheduler(0)``.
        warmup_length: share of the training that the ramp takes, in [0, 1].
        warmup_method: "linear" or "constant" (stay at the start value, then jump).
        rescale_interval: False cuts off the part of ``scheduler`` that the ramp covers; True squeezes all of it
            into the time that remains.
    """

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ):
        first = scheduler(0.0)
        ramps = {
            "constant": lambda: ConstantParamScheduler(warmup_factor * first),
            "linear": lambda: LinearParamScheduler(
                warmup_factor * first, first if rescale_interval else scheduler(warmup_length)
            ),
        }
        if warmup_method not in ramps:
            raise ValueError(f"SOLVER.WARMUP_METHOD {warmup_method!r} is unknown: use one of {', '.join(ramps)}.")
        super().__init__(
            [ramps[warmup_method](), scheduler],
            lengths=[warmup_length, 1.0 - warmup_length],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
        )


class LRMultiplier(LRScheduler):
    """Sets each group's learning rate to its initial value times ``multiplier(iteration / max_iter)``.

    Args:
        optimizer: whose groups are scheduled; the ratios between them stay as they are.
        multiplier: a function of progress in [0, 1).
        max_iter: length of the training in iterations.
        last_iter: the iteration that was done last, -1 for none.
    """

    def __init__(self, optimizer: Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1):
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(f"multiplier has to be a fvcore ParamScheduler, not {type(multiplier).__name__}.")
        self._multiplier, self._max_iter = multiplier, max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict:
        """Where the schedule stands. The schedule itself has no state: the config gives it."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float]:
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [factor * lr for lr in self.base_lrs]
