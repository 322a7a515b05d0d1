"""SOLVER.BEST: the best checkpoint by a metric of DATASETS.VAL, and an end of training where it rises no more."""

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from dyn_d2.checkpoint.checkpointer import read_checkpoint
from dyn_d2.evaluation.results import VALIDATION
from dyn_d2.utils.errors import UserError

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage

from .average import averaged, forget_average

logger = logging.getLogger(__name__)

BEST_FILE = "model_best"
STOPPED = "stopped_after"  # a scalar: the iterations that a training has had which stopped early


def problems_of_best(cfg: CfgNode) -> list[str]:
    """What keeps SOLVER.BEST from working: whole sentences."""
    best = cfg.SOLVER.BEST
    if not best.METRIC:
        return ["SOLVER.BEST.PATIENCE needs SOLVER.BEST.METRIC, such as bbox/AP."] if best.PATIENCE else []
    found = []
    if not cfg.DATASETS.VAL:
        found.append(
            "SOLVER.BEST.METRIC needs data to choose on: set DATASETS.VAL, or DATASETS.CUSTOM.VAL or HOLD_OUT. Those "
            "of DATASETS.TEST are for the result."
        )
    if both := set(cfg.DATASETS.VAL) & {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}:
        found.append(f"DATASETS.VAL has {', '.join(sorted(both))}, which is trained on or reported too: hold data out.")
    if not cfg.TEST.EVAL_PERIOD:
        found.append("SOLVER.BEST.METRIC is looked at every TEST.EVAL_PERIOD iterations: set it above 0.")
    return found


def unknown_metric(metric: str, found: Iterable[str]) -> str:
    """The message about a SOLVER.BEST.METRIC that is none of the metrics that were ``found``."""
    return (
        f"SOLVER.BEST.METRIC is {metric}, which the evaluation of DATASETS.VAL does not give, but "
        f"{', '.join(name for name in found if '-' not in name)}."
    )


class KeepBest(HookBase):
    """Evaluates DATASETS.VAL every TEST.EVAL_PERIOD iterations and keeps the best model as model_best.pth. At the end,
    which comes early after SOLVER.BEST.PATIENCE evaluations without a better one, the model becomes that one, and it is
    what is scored on DATASETS.TEST and left as model_final.pth. Register it before what saves and evaluates."""

    trainer: Any  # a DynTrainer

    def __init__(self, cfg: CfgNode, model: nn.Module, checkpointer: Any, test: Callable[..., Any]) -> None:
        """
        Args:
            model: not wrapped.
            test: (cfg, model) -> results by task, as ``DynTrainer.test``.
        """
        self._cfg = cfg.clone()
        self._cfg.defrost()
        self._cfg.DATASETS.TEST = tuple(cfg.DATASETS.VAL)
        self._cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, VALIDATION)
        self._cfg.freeze()
        self._model, self._checkpointer, self._test = model, checkpointer, test
        self._metric, self._patience, self._period = (
            cfg.SOLVER.BEST.METRIC,
            cfg.SOLVER.BEST.PATIENCE,
            cfg.TEST.EVAL_PERIOD,
        )
        self._sign = 1 if cfg.SOLVER.BEST.MODE == "max" else -1
        self._path = os.path.join(cfg.OUTPUT_DIR, f"{BEST_FILE}.pth")
        self._best: float | None = None
        self._best_iter = self._since = 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "best_iter": self._best_iter, "since": self._since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._best, self._best_iter, self._since = state["best"], state["best_iter"], state["since"]

    def after_step(self) -> None:
        done, last = self.trainer.iter + 1, self.trainer.iter + 1 >= self.trainer.max_iter
        if not last and done % self._period:
            return
        self._look(done)
        stops = bool(self._patience) and self._since >= self._patience and not last
        if stops:
            logger.info(
                f"{self._metric} of {', '.join(self._cfg.DATASETS.TEST)} has not become better in {self._since} "
                f"evaluations: training stops after {done} of {self.trainer.max_iter} iterations"
            )
            self.trainer.storage.put_scalar(STOPPED, done, smoothing_hint=False)
            self.trainer.stop()
        if last or stops:
            self._become_best()

    def _look(self, done: int) -> None:
        os.makedirs(self._cfg.OUTPUT_DIR, exist_ok=True)
        results = self._test(self._cfg, self.trainer.model)
        value, problem = math.nan, ""
        if comm.is_main_process():
            flat = flatten_results_dict(results)
            if self._metric in flat:
                value = float(flat[self._metric])
                self.trainer.storage.put_scalar(f"val/{self._metric}", value, smoothing_hint=False)
            else:
                problem = unknown_metric(self._metric, flat)
        value, problem = comm.all_gather((value, problem))[0]
        if problem:
            raise UserError(problem)
        better = math.isfinite(value) and (self._best is None or self._sign * value > self._sign * self._best)
        self._since = 0 if better else self._since + 1
        if better:
            self._best, self._best_iter = value, done
            if comm.is_main_process():
                with averaged(self._model):
                    self._checkpointer.save_weights(BEST_FILE)
        best = "none yet" if self._best is None else f"{self._best:.3f} after {self._best_iter}"
        logger.info(f"validation: {self._metric} {value:.3f} after {done} iterations; best: {best}")

    def _become_best(self) -> None:
        """Give the model the weights of the best checkpoint."""
        comm.synchronize()
        forget_average(self._model)
        if self._best is None:
            return
        weights = read_checkpoint(self._path)["model"]
        with torch.no_grad():
            for name, value in self._model.state_dict().items():
                value.copy_(torch.as_tensor(weights[name]))
        logger.info(f"the model is that after {self._best_iter} iterations, with {self._metric} {self._best:.3f}")


def stopped_after() -> int | None:
    """The iterations of the training at hand, if it has stopped early."""
    latest = get_event_storage().latest() if has_event_storage() else {}
    return int(latest[STOPPED][0]) if STOPPED in latest else None
