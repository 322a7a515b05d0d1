"""SOLVER.EMA: a running average of the weights, which is what is evaluated, and left as model_ema.pth.

theta' <- d theta' + (1 - d) theta after each step, by torch.optim.swa_utils, of all parameters and of the buffers of
floating point, such as the statistics of batch norms.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from detectron2.engine import HookBase
from detectron2.utils import comm

EMA_FILE = "model_ema"
_PLACE = "_weight_average"  # in a model's __dict__: no part of the model, and gone with it


@contextmanager
def averaged(model: nn.Module) -> Iterator[None]:
    """Inside the block ``model`` has the averaged weights, where SOLVER.EMA is on."""
    average = model.__dict__.get(_PLACE)
    if average is None:
        yield
        return
    with torch.no_grad():
        average.swap()
    try:
        yield
    finally:
        with torch.no_grad():
            average.swap()


def forget_average(model: nn.Module) -> None:
    """The weights of ``model`` are what counts from now on."""
    model.__dict__.pop(_PLACE, None)


class WeightAverage(HookBase):
    """Keeps the average, also with checkpoints, and writes it as model_ema.pth at the end."""

    def __init__(self, model: nn.Module, decay: float, checkpointer: Any) -> None:
        self._model, self._decay, self._checkpointer = model, decay, checkpointer
        # Not the model itself: a copy would also copy its hooks and caches.
        self._weights = _Weights(model)
        self._average = AveragedModel(self._weights, multi_avg_fn=get_ema_multi_avg_fn(decay))
        model.__dict__[_PLACE] = self

    def after_step(self) -> None:
        self._average.update_parameters(self._weights)

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter and _PLACE in self._model.__dict__ and comm.is_main_process():
            with averaged(self._model):
                self._checkpointer.save_weights(EMA_FILE)

    def swap(self) -> None:
        """Exchange the weights of the model and the averaged ones."""
        # Of the model's own tensors, which then count the change: what is folded from them is folded anew.
        for own, mean in zip(_tensors(self._model), self._average.module.parameters(), strict=True):
            kept = own.detach().clone()
            own.copy_(mean)
            mean.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self._average.module.state_dict(), "steps": self._average.n_averaged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._average.module.load_state_dict(state["weights"])
        self._average.n_averaged.copy_(state["steps"])


def _tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and floating-point buffers."""
    return [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]


class _Weights(nn.Module):
    """The parameters and floating-point buffers of a model, as parameters that share their memory."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(t.data, requires_grad=False) for t in _tensors(model))
