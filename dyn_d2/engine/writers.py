"""SOLVER.WRITERS: scalars of a training also go to Weights & Biases or MLflow (extras of dyn_d2)."""

import os
from typing import Any

from dyn_d2.config.read import flatten
from dyn_d2.utils.extras import how_to_install, is_missing

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

WINDOW = 20  # iterations over which smooth scalars are averaged, as on the console


def missing_writers(cfg: CfgNode) -> list[str]:
    """What to install for SOLVER.WRITERS, whose values are names of packages: whole sentences."""
    return [f"{how_to_install(name)}." for name in cfg.SOLVER.WRITERS if is_missing(name)]


def chosen_writers(cfg: CfgNode) -> list[EventWriter]:
    """Writers that SOLVER.WRITERS names; address and account are read from the environment, as those programs do."""
    return [{"wandb": WandbWriter, "mlflow": MlflowWriter}[name](cfg) for name in cfg.SOLVER.WRITERS]


class _Writer(EventWriter):
    """Sends each scalar once, with the iteration that it is of."""

    def __init__(self, cfg: CfgNode) -> None:
        self._last = -1
        self._begin(cfg, os.path.basename(os.path.normpath(cfg.OUTPUT_DIR)))

    def write(self) -> None:
        new: dict[int, dict[str, float]] = {}
        for name, (value, step) in get_event_storage().latest_with_smoothing_hint(WINDOW).items():
            if step > self._last:
                new.setdefault(int(step), {})[name] = float(value)
        for step in sorted(new):
            self._send(new[step], step)
        self._last = max([self._last, *new])

    def _begin(self, cfg: CfgNode, name: str) -> None:
        raise NotImplementedError

    def _send(self, values: dict[str, float], step: int) -> None:
        raise NotImplementedError


class WandbWriter(_Writer):
    """A run of Weights & Biases; WANDB_MODE=offline writes to a folder only."""

    def _begin(self, cfg: CfgNode, name: str) -> None:
        import wandb

        self._run: Any = wandb.init(project=cfg.SOLVER.PROJECT, name=name, dir=cfg.OUTPUT_DIR, config=flatten(cfg))

    def _send(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class MlflowWriter(_Writer):
    """A run of MLflow; MLFLOW_TRACKING_URI says where."""

    def _begin(self, cfg: CfgNode, name: str) -> None:
        import mlflow

        self._mlflow: Any = mlflow
        mlflow.set_experiment(cfg.SOLVER.PROJECT)
        mlflow.start_run(run_name=name)
        keys = {key: str(value)[:500] for key, value in flatten(cfg).items()}
        for begin in range(0, len(keys), 100):  # it takes 100 at a time
            mlflow.log_params(dict(list(keys.items())[begin : begin + 100]))

    def _send(self, values: dict[str, float], step: int) -> None:
        self._mlflow.log_metrics(values, step=step)

    def close(self) -> None:
        self._mlflow.end_run()
