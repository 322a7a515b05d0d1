"""Hooks of DynTrainer."""

import math
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from dyn_d2.utils.seeds import seed_all


class DivergenceError(FloatingPointError):
    """The loss is NaN or infinite; the message names the images, the rate and the first bad term."""


class StepSeeds(HookBase):
    """Makes the random numbers of an iteration depend on (seed, process, iteration) only, so that a resumed run
    draws what an unbroken one would have drawn."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def before_step(self) -> None:
        seed_all(self._seed, "step", comm.get_rank(), self.trainer.iter)


class LossGuard(HookBase):
    """Stops training at the first NaN or infinite loss term, before it reaches the weights.

    Raises:
        DivergenceError: in the forward pass of the model.
    """

    def __init__(self, model: torch.nn.Module, hint: str = "") -> None:
        """
        Args:
            model: what the trainer calls; its first argument is the batch, it returns the losses by name.
            hint: appended to the message, e.g. what was unusual about rate and batch.
        """
        self._model, self._hint = model, hint
        self._batch: list[dict[str, Any]] = []

    def before_train(self) -> None:
        self._handles = [
            self._model.register_forward_pre_hook(self._remember),
            self._model.register_forward_hook(self._check),
        ]

    def after_train(self) -> None:
        for handle in self._handles:
            handle.remove()

    def explain(self, what: str) -> DivergenceError:
        """The error for ``what`` with the images of the current batch."""
        rate = max(group["lr"] for group in self.trainer.optimizer.param_groups)
        names = [str(record.get("file_name", "(no file name)")) for record in self._batch]
        return DivergenceError(
            f"iteration {self.trainer.iter}: {what}. Learning rate: {rate:g}. "
            f"Images of this batch: {', '.join(names)}. Usual remedies: a smaller SOLVER.BASE_LR, "
            f"a longer SOLVER.WARMUP_ITERS, clean boxes.{self._hint}"
        )

    def _remember(self, module: torch.nn.Module, inputs: tuple) -> None:
        self._batch = inputs[0] if inputs and isinstance(inputs[0], list) else []

    def _check(self, module: torch.nn.Module, inputs: tuple, losses: Any) -> None:
        if not module.training or not isinstance(losses, dict):
            return
        for name, value in losses.items():
            number = float(value.detach().sum())
            if not math.isfinite(number):
                raise self.explain(f"{name} is {number}")
