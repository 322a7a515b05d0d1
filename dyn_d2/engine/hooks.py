"""Hooks of DynTrainer."""

import logging
import math
import time
from typing import Any

import torch

from dyn_d2.utils.errors import UserError
from dyn_d2.utils.seeds import seed_all

from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer
from detectron2.utils import comm

logger = logging.getLogger(__name__)


class DivergenceError(UserError, FloatingPointError):
    """The loss is NaN or infinite; the message names the images, the rate and the first bad term."""


class StepSeeds(HookBase):
    """Makes the random numbers of an iteration depend on (seed, process, iteration) only, so that a resumed run
    draws what an unbroken one would have drawn."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def before_step(self) -> None:
        seed_all(self._seed, "step", comm.get_rank(), self.trainer.iter)


class FirstSteps(HookBase):
    """Says that training moves, and for how long it will, before the first line of losses comes."""

    SAID = (1, 5)  # iterations

    def before_train(self) -> None:
        self._began = time.perf_counter()

    def after_step(self) -> None:
        done = self.trainer.iter + 1 - self.trainer.start_iter
        if done not in self.SAID or not comm.is_main_process():
            return
        seconds = (time.perf_counter() - self._began) / done
        left = self.trainer.max_iter - self.trainer.iter - 1
        minutes, rest = divmod(round(left * seconds), 60)
        logger.info(
            f"iteration {self.trainer.iter + 1} of {self.trainer.max_iter}: {seconds:.2f} s each so far, about "
            f"{minutes}:{rest:02d} (min:s) to go"
        )


class LossGuard(HookBase):
    """Stops training at the first NaN or infinite loss term, before it reaches the weights.

    Raises:
        DivergenceError: in the forward pass of the model.
    """

    trainer: DefaultTrainer | SimpleTrainer

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


class LossAverages(HookBase):
    """Keeps with the checkpoint the running averages that a model holds outside of its state_dict: RetinaNet's and
    FCOS's ``loss_normalizer``, without which the losses after a resume would differ.

    Several processes average over their own images; all of them go on from the value of process 0.
    """

    ATTRIBUTE = "loss_normalizer"

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model

    def state_dict(self) -> dict[str, float]:
        owners = {name: module for name, module in self._model.named_modules() if self.ATTRIBUTE in vars(module)}
        return {name: float(getattr(module, self.ATTRIBUTE)) for name, module in owners.items()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        for name, value in state.items():
            setattr(self._model.get_submodule(name), self.ATTRIBUTE, value)
