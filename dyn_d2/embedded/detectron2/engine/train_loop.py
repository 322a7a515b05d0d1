"""The loop: data, losses, gradients, step; everything else is a hook."""

import logging
import math
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage


class HookBase:
    """Something that happens around training steps. Methods run in the order in which hooks were registered.

    ``trainer`` is a weak reference to the trainer, set by ``TrainerBase.register_hooks``.
    """

    trainer: "TrainerBase" = None

    def before_train(self) -> None:
        """Once, before the first step."""

    def after_train(self) -> None:
        """Once, after the last step, also when training stops with an error."""

    def before_step(self) -> None:
        """Before each step."""

    def after_backward(self) -> None:
        """Between gradients and the optimizer's step."""

    def after_step(self) -> None:
        """After each step."""

    def state_dict(self) -> dict:
        """What a checkpoint has to keep of this hook; nothing by default."""
        return {}


class TrainerBase:
    """A loop over ``run_step`` with hooks.

    Attributes:
        iter: the iteration that runs now; equals ``max_iter`` once training has ended well.
        start_iter, max_iter: first iteration and the one before which training ends.
        storage: the EventStorage that is open while training.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter = 0
        self.start_iter = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: Iterable[HookBase | None]) -> None:
        """Append hooks; None entries are left out."""
        for hook in hooks:
            if hook is None:
                continue
            if not isinstance(hook, HookBase):
                raise TypeError(f"{hook!r} is not a HookBase.")
            hook.trainer = weakref.proxy(self)  # weak: trainer and hook would keep each other alive
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations ``start_iter`` to ``max_iter - 1``."""
        logger = logging.getLogger(__name__)
        logger.info("Training starts at iteration %d and ends before %d", start_iter, max_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                while self.iter < max_iter:
                    for part in (self.before_step, self.run_step, self.after_step):
                        part()
                    self.iter += 1
            except Exception:
                logger.exception("Training stopped at iteration %d:", self.iter)
                raise
            finally:
                self.after_train()

    def _call_hooks(self, moment: str) -> None:
        for hook in self._hooks:
            getattr(hook, moment)()

    def before_train(self) -> None:
        self._call_hooks("before_train")

    def after_train(self) -> None:
        self.storage.iter = self.iter
        self._call_hooks("after_train")

    def before_step(self) -> None:
        self.storage.iter = self.iter
        self._call_hooks("before_step")

    def after_backward(self) -> None:
        self._call_hooks("after_backward")

    def after_step(self) -> None:
        self._call_hooks("after_step")

    def run_step(self) -> None:
        """One iteration; a subclass has to define it."""
        raise NotImplementedError

    def state_dict(self) -> dict:
        """The iteration done last and the states of the hooks, by class name."""
        state: dict = {"iteration": self.iter}
        hooks: dict = {}
        for hook in self._hooks:
            if hook_state := hook.state_dict():
                hooks.setdefault(type(hook).__qualname__, hook_state)
        return state | ({"hooks": hooks} if hooks else {})

    def load_state_dict(self, state_dict: dict) -> None:
        self.iter = state_dict["iteration"]
        by_name = {type(hook).__qualname__: hook for hook in reversed(self._hooks)}
        for name, hook_state in state_dict.get("hooks", {}).items():
            if name in by_name:
                by_name[name].load_state_dict(hook_state)
            else:
                logging.getLogger(__name__).warning("The checkpoint's state of hook %s is unused.", name)


class SimpleTrainer(TrainerBase):
    """One model that returns a dict of losses, one loader, one optimizer.

    Args:
        model: called with what ``data_loader`` gives; put into training mode here.
        gather_metric_period: iterations between two gatherings of metrics from all processes.
        zero_grad_before_forward: clear gradients before the forward pass rather than before the backward pass.
        async_write_metrics: gather and store metrics in a thread beside the training.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ):
        super().__init__()
        model.train()
        self.model, self.data_loader, self.optimizer = model, data_loader, optimizer
        self.gather_metric_period, self.async_write_metrics = gather_metric_period, async_write_metrics
        self.zero_grad_before_forward = zero_grad_before_forward
        self._data_loader_iter_obj = None
        # One thread, so that metrics are stored in the order of the steps.
        self.concurrent_executor = ThreadPoolExecutor(max_workers=1)

    @property
    def _data_loader_iter(self):
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = iter(self.data_loader)
        return self._data_loader_iter_obj

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable]) -> None:
        """Go on with the loader that ``data_loader_builder()`` makes."""
        # The old loader goes first, with its worker processes.
        self.data_loader = self._data_loader_iter_obj = None
        self.data_loader = data_loader_builder()

    def run_step(self) -> None:
        if not self.model.training:
            raise RuntimeError("The model is in eval mode in the middle of training: something called model.eval().")
        asked = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - asked
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        losses, total = self._forward(data)
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self._backward(total)
        self.after_backward()
        if self.async_write_metrics:
            self.concurrent_executor.submit(self._write_metrics, losses, data_time, iter=self.iter)
        else:
            self._write_metrics(losses, data_time)
        self._update()

    def _forward(self, data) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        losses = self.model(data)
        if isinstance(losses, torch.Tensor):
            return {"total_loss": losses}, losses
        return losses, sum(losses.values())

    def _backward(self, total: torch.Tensor) -> None:
        total.backward()

    def _update(self) -> None:
        self.optimizer.step()

    def _write_metrics(
        self, loss_dict: Mapping[str, torch.Tensor], data_time: float, prefix: str = "", iter: int | None = None
    ) -> None:
        iteration = self.iter if iter is None else iter
        if (iteration + 1) % self.gather_metric_period == 0:
            SimpleTrainer.write_metrics(loss_dict, data_time, iteration, prefix)

    @staticmethod
    def write_metrics(loss_dict: Mapping[str, torch.Tensor], data_time: float, cur_iter: int, prefix: str = "") -> None:
        """Average the losses over all processes and put them into the current storage.

        Raises:
            FloatingPointError: their sum is infinite or NaN.
        """
        names = list(loss_dict)
        # One transfer from the device for all losses.
        values = torch.stack([loss_dict[name].detach().float() for name in names]).tolist() if names else []
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=cur_iter)
        gathered = comm.gather((dict(zip(names, values, strict=True)), data_time))
        if not comm.is_main_process():
            return
        # The slowest process is the one that all wait for.
        storage.put_scalar("data_time", max(seconds for _, seconds in gathered), cur_iter=cur_iter)
        means = {name: math.fsum(metrics[name] for metrics, _ in gathered) / len(gathered) for name in gathered[0][0]}
        total = sum(means.values())
        if not math.isfinite(total):
            raise FloatingPointError(f"The loss is {total} at iteration {cur_iter}; its parts: {means}")
        storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
        if len(means) > 1:
            storage.put_scalars(cur_iter=cur_iter, **means)

    def state_dict(self) -> dict:
        return super().state_dict() | {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])

    def after_train(self) -> None:
        super().after_train()
        self.concurrent_executor.shutdown(wait=True)


class AMPTrainer(SimpleTrainer):
    """SimpleTrainer in mixed precision, on CUDA.

    Args:
        grad_scaler: scales the loss against underflow; made here when None.
        precision: the type of the reduced operations.
        log_grad_scaler: store the scale at every step.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        grad_scaler: torch.amp.GradScaler | None = None,
        precision: torch.dtype = torch.float16,
        log_grad_scaler: bool = False,
        async_write_metrics: bool = False,
    ):
        super().__init__(
            model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward, async_write_metrics
        )
        if not torch.cuda.is_available():
            raise RuntimeError("SOLVER.AMP.ENABLED needs a CUDA device: set it to False on this machine.")
        self.grad_scaler = torch.amp.GradScaler("cuda") if grad_scaler is None else grad_scaler
        self.precision = precision
        self.log_grad_scaler = log_grad_scaler

    def _forward(self, data) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        with torch.autocast("cuda", dtype=self.precision):
            return super()._forward(data)

    def _backward(self, total: torch.Tensor) -> None:
        self.grad_scaler.scale(total).backward()
        if self.log_grad_scaler:
            get_event_storage().put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())

    def _update(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict:
        return super().state_dict() | {"grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
