"""What happens around training steps: timing, schedules, checkpoints, evaluation, writing of events."""

import logging
import math
import time
from collections.abc import Callable, Iterable
from datetime import timedelta

import torch
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn
from torch.optim.lr_scheduler import LRScheduler as _TorchScheduler

from detectron2.evaluation.testing import flatten_results_dict
from detectron2.left_out import refusal_of
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter

from .train_loop import HookBase

__getattr__ = refusal_of(__name__)


def _due(period: int, iteration: int) -> bool:
    return period > 0 and (iteration + 1) % period == 0


class CallbackHook(HookBase):
    """Calls the given functions with the trainer."""

    def __init__(
        self,
        *,
        before_train: Callable | None = None,
        after_train: Callable | None = None,
        before_step: Callable | None = None,
        after_step: Callable | None = None,
    ):
        self._before_train, self._after_train = before_train, after_train
        self._before_step, self._after_step = before_step, after_step

    def before_train(self) -> None:
        if self._before_train:
            self._before_train(self.trainer)

    def after_train(self) -> None:
        if self._after_train:
            self._after_train(self.trainer)
        # Closures often hold the trainer: let go of it.
        self._before_train = self._after_train = self._before_step = self._after_step = None

    def before_step(self) -> None:
        if self._before_step:
            self._before_step(self.trainer)

    def after_step(self) -> None:
        if self._after_step:
            self._after_step(self.trainer)


class IterationTimer(HookBase):
    """Stores the seconds of each step as "time" and logs a summary at the end.

    Register it first: it measures what runs between its own ``before_step`` and ``after_step``.

    Args:
        warmup_iter: first steps that do not count.
    """

    def __init__(self, warmup_iter: int = 3):
        self._warmup_iter = warmup_iter
        self._start = self._step_start = time.perf_counter()
        self._counted, self._step_seconds = 0, 0.0

    def before_train(self) -> None:
        self._start = time.perf_counter()

    def before_step(self) -> None:
        self._step_start = time.perf_counter()

    def after_step(self) -> None:
        seconds = time.perf_counter() - self._step_start
        done = self.trainer.iter - self.trainer.start_iter + 1
        if done >= self._warmup_iter:
            self.trainer.storage.put_scalars(time=seconds)
        if done > self._warmup_iter:
            self._counted += 1
            self._step_seconds += seconds

    def after_train(self) -> None:
        logger = logging.getLogger(__name__)
        if self._counted:
            mean = self._step_seconds / self._counted
            logger.info("Speed: %d iterations at %.4f s each", self._counted, mean)
        total = timedelta(seconds=int(time.perf_counter() - self._start))
        logger.info("Training took %s in all", total)


class PeriodicWriter(HookBase):
    """Lets each EventWriter write every ``period`` iterations, after the last one, and when training ends."""

    def __init__(self, writers: list[EventWriter], period: int = 20):
        for writer in writers:
            if not isinstance(writer, EventWriter):
                raise TypeError(f"{writer!r} is not an EventWriter.")
        self._writers, self._period = writers, period

    def after_step(self) -> None:
        if _due(self._period, self.trainer.iter) or self.trainer.iter == self.trainer.max_iter - 1:
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        for writer in self._writers:
            # Results of an evaluation after the last step arrive after the last after_step.
            writer.write()
            writer.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's PeriodicCheckpointer as a hook: every ``period`` iterations and after the last one."""

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Keeps the checkpoint with the best value of one metric; register it behind the EvalHook that gives the metric.

    Args:
        eval_period: period of that EvalHook.
        val_metric: name in the storage, such as "bbox/AP50".
        mode: "max" or "min", which values are better.
        file_prefix: name of the checkpoint.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode {mode!r} is unknown: use max or min.")
        self._period, self._checkpointer = eval_period, checkpointer
        self._metric, self._sign, self._file_prefix = val_metric, 1 if mode == "max" else -1, file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def _check(self) -> None:
        logger = logging.getLogger(__name__)
        latest = self.trainer.storage.latest().get(self._metric)
        if latest is None:
            logger.warning("No evaluation gave the metric %s: no best checkpoint is kept.", self._metric)
            return
        value, iteration = latest
        if not math.isfinite(value):
            return
        if self.best_metric is None or self._sign * value > self._sign * self.best_metric:
            self._checkpointer.save(self._file_prefix, iteration=iteration)
            self.best_metric, self.best_iter = value, iteration
            logger.info("%s: best so far, %.5f at iteration %d", self._metric, value, iteration)

    def after_step(self) -> None:
        if _due(self._period, self.trainer.iter) and self.trainer.iter + 1 != self.trainer.max_iter:
            self._check()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._check()


class LRScheduler(HookBase):
    """Steps the learning-rate schedule after every iteration and stores the rate of the largest group as "lr".

    Args:
        optimizer, scheduler: taken from the trainer when None. A fvcore ParamScheduler multiplies the initial rates.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer | None = None, scheduler: _TorchScheduler | ParamScheduler | None = None
    ):
        self._optimizer, self._scheduler = optimizer, scheduler

    @property
    def scheduler(self) -> _TorchScheduler | ParamScheduler:
        return self._scheduler or self.trainer.scheduler

    def before_train(self) -> None:
        self._optimizer = self._optimizer or self.trainer.optimizer
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer, self.scheduler, self.trainer.max_iter, last_iter=self.trainer.iter - 1
            )
        self._shown = LRScheduler.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """Index of the group with most parameters; of the most common rate when every group has one parameter."""
        groups = optimizer.param_groups
        sizes = [len(group["params"]) for group in groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in groups]
        return rates.index(max(rates, key=rates.count))

    def after_step(self) -> None:
        self.trainer.storage.put_scalar("lr", self._optimizer.param_groups[self._shown]["lr"], smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict:
        return self.scheduler.state_dict() if isinstance(self.scheduler, _TorchScheduler) else {}

    def load_state_dict(self, state_dict: dict) -> None:
        if isinstance(self.scheduler, _TorchScheduler):
            self.scheduler.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Calls an evaluation every ``eval_period`` iterations (0: never) and after the last one.

    Args:
        eval_function: returns a nested dict of numbers, which are stored with "/" between the levels. It has to be
            registered in all processes, for evaluation is collective.
        eval_after_train: whether to evaluate after the last iteration.
    """

    def __init__(self, eval_period: int, eval_function: Callable[[], dict | None], eval_after_train: bool = True):
        self._period, self._function, self._eval_after_train = eval_period, eval_function, eval_after_train

    def _evaluate(self) -> None:
        results = self._function()
        if results:
            if not isinstance(results, dict):
                raise TypeError(f"The evaluation returned {type(results).__name__} instead of a dict.")
            flat = flatten_results_dict(results)
            for name, value in flat.items():
                try:
                    flat[name] = float(value)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"The evaluation's result {name} is no number: {value!r}") from error
            self.trainer.storage.put_scalars(**flat, smoothing_hint=False)
        # Evaluators may take different time in each process; leave together.
        comm.synchronize()

    def after_step(self) -> None:
        if _due(self._period, self.trainer.iter) and self.trainer.iter + 1 != self.trainer.max_iter:
            self._evaluate()

    def after_train(self) -> None:
        if self._eval_after_train and self.trainer.iter + 1 >= self.trainer.max_iter:
            self._evaluate()
        self._function = None  # usually a closure over the trainer


class PreciseBN(HookBase):
    """Replaces running BatchNorm statistics by true averages over ``num_iter`` batches.

    Runs every ``period`` iterations (0: not during training) and after the last one, on the BatchNorm layers of
    ``model`` that are in training mode.
    """

    def __init__(self, period: int, model: nn.Module, data_loader: Iterable, num_iter: int):
        self._period, self._model, self._num_iter = period, model, num_iter
        self._data_loader, self._batches = data_loader, None
        self._disabled = not get_bn_modules(model)
        if self._disabled:
            logging.getLogger(__name__).info("PreciseBN is off: no BatchNorm layer of the model is in training mode.")

    def after_step(self) -> None:
        if _due(self._period, self.trainer.iter) or self.trainer.iter + 1 == self.trainer.max_iter:
            self.update_stats()

    def update_stats(self) -> None:
        """Recompute the statistics now."""
        if self._disabled:
            return
        if self._batches is None:
            self._batches = iter(self._data_loader)
        logging.getLogger(__name__).info("Computing precise BatchNorm statistics over %d batches", self._num_iter)
        with EventStorage():  # what the model stores meanwhile is no part of the training's record
            update_bn_stats(self._model, self._batches, self._num_iter)
