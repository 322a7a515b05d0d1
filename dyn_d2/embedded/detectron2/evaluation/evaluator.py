"""The contract of evaluators, and the loop that runs a model over a data set for them."""

import datetime
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from detectron2.utils.comm import get_world_size, is_main_process
from detectron2.utils.logger import log_every_n_seconds

# The first batches pay for caches and memory pools; times start after them.
WARMUP_BATCHES = 5
STAGES = ("Dataloading", "Inference", "Eval")


class DatasetEvaluator:
    """Collects what a model says about a data set, batch by batch, and judges it in the end."""

    def reset(self) -> None:
        """Forget what was collected; called before each round."""

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take in one batch.

        Args:
            inputs: what the model was given, one dict per image.
            outputs: what it returned, in the same order.
        """

    def evaluate(self) -> dict | None:
        """Results of the round as {task: {metric: number}}; None or {} in all but the main process."""


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators in one; their results are merged."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]):
        self._evaluators = evaluators

    def reset(self) -> None:
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> dict:
        """Merged results.

        Raises:
            ValueError: two evaluators name a task the same.
        """
        merged: dict = OrderedDict()
        for evaluator in self._evaluators:
            results = evaluator.evaluate() or {}  # every process has to take part, also where nothing comes back
            if not is_main_process():
                continue
            if both := merged.keys() & results.keys():
                raise ValueError(f"Two evaluators give results for the same task: {sorted(both)}.")
            merged.update(results)
        return merged


class _Timer:
    """Seconds spent in each stage of the loop, without the warm-up batches."""

    def __init__(self, total: int):
        self.total = total
        self.warmup = max(min(WARMUP_BATCHES, total - 1), 0)
        self.restart()

    def restart(self) -> None:
        self.start = self.last = time.perf_counter()
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def lap(self, stage: str) -> None:
        """Count the time since the last lap for ``stage``."""
        now = time.perf_counter()
        self.seconds[stage] += now - self.last
        self.last = now

    def report(self, done: int) -> None:
        """Log progress now and then, once the numbers mean something."""
        counted = done - self.warmup if done > self.warmup else done
        each = {stage: seconds / counted for stage, seconds in self.seconds.items()}
        if done <= 2 * self.warmup and each["Inference"] < 5:
            return
        overall = (time.perf_counter() - self.start) / counted
        eta = datetime.timedelta(seconds=int(overall * (self.total - done)))
        times = " ".join(f"{stage}: {seconds:.4f} s/iter." for stage, seconds in [*each.items(), ("Total", overall)])
        log_every_n_seconds(logging.INFO, f"Inference done {done}/{self.total}. {times} ETA={eta}", n=5)

    def summarize(self, logger: logging.Logger) -> None:
        elapsed = time.perf_counter() - self.start
        batches, devices = max(self.total - self.warmup, 1), get_world_size()
        for label, seconds in (("time", elapsed), ("pure compute time", self.seconds["Inference"])):
            logger.info(
                f"Total inference {label}: {datetime.timedelta(seconds=seconds)} "
                f"({seconds / batches:.6f} s / iter per device, on {devices} devices)"
            )


def inference_on_dataset(
    model: Callable[[list[dict]], list[dict]],
    data_loader: Iterable,
    evaluator: DatasetEvaluator | list[DatasetEvaluator] | None,
    callbacks: dict[str, Callable[[], None]] | None = None,
) -> dict:
    """Run ``model`` over ``data_loader`` without gradients, and evaluate.

    Args:
        model: called with each batch. A module is in eval mode meanwhile.
        data_loader: iterable with a length.
        evaluator: one, a list, or None to only measure the time.
        callbacks: functions without arguments under "on_start", "before_inference", "after_inference", "on_end".

    Returns:
        The results of the evaluator, {} where it has none (as in all processes but the main one).
    """
    logger = logging.getLogger(__name__)
    logger.info(f"Start inference on {len(data_loader)} batches")
    if evaluator is None or isinstance(evaluator, list):
        evaluator = DatasetEvaluators(evaluator or [])
    evaluator.reset()

    def call(name: str) -> None:
        if callbacks and name in callbacks:
            callbacks[name]()

    timer = _Timer(len(data_loader))
    with inference_context(model) if isinstance(model, nn.Module) else nullcontext(), torch.no_grad():
        call("on_start")
        timer.restart()
        for done, inputs in enumerate(data_loader):
            timer.lap("Dataloading")
            if done == timer.warmup:
                timer.restart()
            call("before_inference")
            outputs = model(inputs)
            call("after_inference")
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            timer.lap("Inference")
            evaluator.process(inputs, outputs)
            timer.lap("Eval")
            timer.report(done + 1)
        call("on_end")
    timer.summarize(logger)  # before processes wait for each other
    return evaluator.evaluate() or {}


@contextmanager
def inference_context(model: nn.Module) -> Iterator[Any]:
    """Put ``model`` into eval mode, and back into its former mode in the end, also after an error."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
