"""Going on where a run was killed: from a whole checkpoint, with the data, weights and schedule that it began with, and
without a gap in its log. What differs is refused, with the way to go on all the same."""

import json
import logging
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dyn_d2.checkpoint import CheckpointError, LoadReport
from dyn_d2.checkpoint.files import FINAL, TAG, one_before, periodic, tagged
from dyn_d2.config.output_dir import OutputDirError, differing_keys
from dyn_d2.config.read import as_yaml, flatten
from dyn_d2.utils.atomic import atomic_write

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from .inputs import ALLOW, ChangedInputs, changed, inputs_of, listed
from .lr_schedules import POLY

if TYPE_CHECKING:
    from .trainer import DynTrainer

logger = logging.getLogger(__name__)

_WHOLE_SCHEDULES = (POLY, "WarmupCosineLR")  # the rate of every iteration depends on MAX_ITER
_SAID = ("SOLVER.MAX_ITER", "SOLVER.STEPS", "DATASETS.TEST")  # may change, but not without a word
WINDOW = 20  # iterations whose values are kept: writers smooth over as many


def checkpoint_to_resume(folder: str) -> str:
    """The checkpoint that a run in ``folder`` goes on from.

    Raises:
        CheckpointError: there is none.
    """
    path = tagged(folder)
    if path is None:
        raise CheckpointError(
            f"--resume was given, but OUTPUT_DIR {folder} holds no checkpoint: "
            "leave --resume out to start from MODEL.WEIGHTS, or correct OUTPUT_DIR."
        )
    noted = Path(folder, TAG).read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    if path.name != noted:
        logger.warning(f"{TAG} names {noted or 'nothing'}, which is not there: going on from {path.name}, the newest.")
    return str(path)


def load_to_resume(trainer: "DynTrainer", path: str) -> None:
    """Load model and state of ``trainer``, which then stands behind the last iteration of the checkpoint.

    Raises:
        CheckpointError: it is damaged, or holds no state of a trainer.
    """
    try:
        trainer.checkpointer.load(path)
    except CheckpointError as error:
        before = one_before(path)
        if before is None:
            raise
        raise CheckpointError(
            f"{str(error).rstrip('.')}. The checkpoint before it, {before}, is whole: "
            f"`echo {before.name} > {before.parent / TAG}`, and --resume goes on from there."
        ) from error
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"--resume: the state of the training in {path} cannot be used ({type(error).__name__}: {error}): leave "
            "--resume out and give it as MODEL.WEIGHTS to start anew from its weights."
        ) from error
    report = trainer.checkpointer.report
    if "trainer" not in report.entries:
        raise CheckpointError(
            f"--resume: {path} holds weights only, no state of a training (iteration, optimizer, schedule): leave "
            f"--resume out and give it as MODEL.WEIGHTS to start from it."
        )
    report.check_complete()


def check_same_run(cfg: CfgNode, report: LoadReport, done: int) -> None:
    """What goes on is what began: stage, config, schedule, data.

    Args:
        report: of the checkpoint.
        done: iterations that its model has seen.

    Raises:
        CheckpointError: another few-shot stage, or more iterations than MAX_ITER.
        OutputDirError: another config, or a schedule that MAX_ITER changes from the beginning.
        ChangedInputs: other data, or other files.
    """
    path, described = report.source, report.metadata
    stage = described.get("stage", "")
    if cfg.FEW_SHOT.BENCHMARK and stage != cfg.FEW_SHOT.STAGE:
        raise CheckpointError(
            f"--resume: {path} is of stage {stage or '(none)'}, FEW_SHOT.STAGE is {cfg.FEW_SHOT.STAGE}: "
            "give each stage its own OUTPUT_DIR, and the checkpoint before it as MODEL.WEIGHTS."
        )
    if done > cfg.SOLVER.MAX_ITER:
        raise CheckpointError(
            f"--resume: the model of {path} has seen {done} iterations, SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER}: give "
            f"{done} or more{_earlier(path, cfg.SOLVER.MAX_ITER)}."
        )
    old = _own_config(described, path)
    if old:
        _check_config(cfg, old, path)
    _check_inputs(cfg, described.get("inputs") or {}, path)


def _earlier(path: str, iterations: int) -> str:
    fitting = [p for p in periodic(Path(path).parent) if int(p.stem.removeprefix("model_")) < iterations]
    return f", or write {fitting[0].name} into {fitting[0].parent / TAG} to go on from there" if fitting else ""


def _own_config(described: dict[str, Any], path: str) -> dict[str, Any]:
    """The config that the checkpoint carries, {} where it has none.

    Raises:
        CheckpointError: it cannot be read.
    """
    text = described.get("config")
    if not text:
        return {}
    try:
        old = yaml.safe_load(text)
        if not isinstance(old, dict):
            raise ValueError("it is no tree of keys")
        flatten(old)
    except (yaml.YAMLError, RecursionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"--resume: the config that {path} carries cannot be read ({reason}), so nobody knows whether this run is "
            "the same: leave --resume out and give it as MODEL.WEIGHTS to start anew from its weights."
        ) from error
    return old


def _check_config(cfg: CfgNode, old: dict[str, Any], path: str) -> None:
    lines = differing_keys(old, cfg)
    if old.get("SEED", cfg.SEED) != cfg.SEED:  # without config.yaml a new one was drawn
        lines.append(f"SEED: {old['SEED']} -> {cfg.SEED}")
    if lines:
        if comm.is_main_process():  # the next attempt, with the old values, is compared with that file
            with atomic_write(Path(cfg.OUTPUT_DIR, "config.yaml")) as file:
                yaml.safe_dump(old, file)
        raise OutputDirError(
            f"--resume: {path} is of a run with another config:{listed(lines, 20)}\nGive the old values to resume, or "
            "train into another OUTPUT_DIR with this file as MODEL.WEIGHTS."
        )
    before, now = flatten(old), flatten(as_yaml(cfg))
    other = [f"{key} {before[key]} -> {now[key]}" for key in _SAID if before.get(key, now[key]) != now[key]]
    if not other:
        return
    if before.get("SOLVER.MAX_ITER") != now["SOLVER.MAX_ITER"] and cfg.SOLVER.LR_SCHEDULER_NAME in _WHOLE_SCHEDULES:
        text = (
            f"the rate of every iteration of {cfg.SOLVER.LR_SCHEDULER_NAME} depends on SOLVER.MAX_ITER, which was "
            f"{before.get('SOLVER.MAX_ITER')} and is {now['SOLVER.MAX_ITER']}: those done had other rates"
        )
        if not cfg.SOLVER.ALLOW_CHANGED_INPUTS:
            raise OutputDirError(f"--resume: {text}. Give the old value, or {ALLOW} True to go on all the same.")
        logger.warning(f"{text}.")
    logger.warning(f"resuming with {', '.join(other)}")


def _check_inputs(cfg: CfgNode, old: dict[str, Any], path: str) -> None:
    """One process looks; where it raises, the others end with it."""
    if not old or not comm.is_main_process():
        return
    now = inputs_of(cfg, cfg.DATASETS.TRAIN)
    lines = changed(old, now, weights=False)
    if lines and not cfg.SOLVER.ALLOW_CHANGED_INPUTS:
        raise ChangedInputs(
            f"--resume: not what {path} was trained on:{listed(lines)}\nBring it back, start afresh in another "
            f"OUTPUT_DIR, or give {ALLOW} True to go on with what is there now."
        )
    if lines:
        logger.warning(f"going on with other data than {path} was trained on ({ALLOW}):{listed(lines)}")
    replaced = changed({"weights": old.get("weights", {})}, now)
    if replaced:
        logger.warning(
            f"MODEL.WEIGHTS is another file than the one that this run began with:{listed(replaced)}\n"
            "It does not matter to what goes on; to train from the new one, start afresh."
        )


def write_final_model(trainer: "DynTrainer") -> None:
    """Where a kill came between the last step and model_final.pth: write it, as the last step would have.

    ``trainer`` stands behind its last iteration.
    """
    logger.info(f"all {trainer.max_iter} iterations are done, {FINAL} is missing: writing it")
    trainer.checkpointer.save(FINAL.removesuffix(".pth"), iteration=trainer.iter)


# ----------------------------------------------------------------------------------------------------------- the log


def drop_metrics_from(path: str, iteration: int, kept: Collection[int] = ()) -> int:
    """Take the rows of ``iteration`` and later out of a metrics.json, and what comes after a line that a kill has cut
    off: the resumed run logs those iterations again. The file is changed in place, since its writer has it open.

    Rows may stand in any order: an installed Detectron2 writes those of an evaluation after those of later losses.

    Args:
        kept: iterations whose values the resumed run has at hand. Where a kill has left out the row of one of them, the
            later rows of the same writing are taken out too.

    Returns:
        The last iteration that is left; -1 where there is none.
    """
    if not os.path.isfile(path):
        return -1
    with open(path, "rb") as file:
        content = file.read()
    rows = list(_whole_rows(content))
    found = {step for step, _ in rows}
    left_out = min(set(kept) - found, default=iteration)
    if {step for step in found if left_out < step < iteration} <= set(kept):
        iteration = min(iteration, left_out)
    left = b"".join(line for step, line in rows if step < iteration)
    if left != content:
        same = len(os.path.commonprefix([left, content]))  # a kill in between must not touch the rows before
        with open(path, "r+b") as file:
            file.seek(same)
            file.write(left[same:])
            file.truncate()
    return max((step for step, _ in rows if step < iteration), default=-1)


def _whole_rows(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Iteration and line of each row, up to the first that is none."""
    for line in content.splitlines(keepends=True):
        try:
            step = json.loads(line).get("iteration", -1)
        except (ValueError, AttributeError):
            return
        if not line.endswith(b"\n") or not isinstance(step, int):
            return
        yield step, line


def _is_kept(name: Any, history: Any) -> bool:
    if not isinstance(name, str) or not isinstance(history, dict) or not isinstance(history.get("smooth"), bool):
        return False
    values = history.get("values")
    if not isinstance(values, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in values):
        return False
    return all(isinstance(value, float | int) and isinstance(step, int) for value, step in values)


class KeepScalars(HookBase):
    """Keeps what was logged last with the checkpoint, so that medians go on after a resume, and writes what a kill
    between the checkpoint and its evaluation, or its row of metrics.json, has left out."""

    def __init__(self, writers: list[EventWriter], eval_period: int, write_period: int = WINDOW) -> None:
        """
        Args:
            writers: of the run; none but in the main process.
            eval_period: TEST.EVAL_PERIOD.
            write_period: iterations between two rows.
        """
        self._writers, self._eval_period, self._write_period = writers, eval_period, write_period
        self._kept: dict[str, dict[str, Any]] = {}
        self._written: int | None = None

    def state_dict(self) -> dict[str, Any]:
        storage = getattr(self.trainer, "storage", None)
        if storage is None:  # a checkpoint that is written before anything is trained
            return {"scalars": self._kept} if self._kept else {}
        hints, kept = storage.smoothing_hints(), {}
        for name, history in storage.histories().items():
            values = [[float(value), int(step)] for value, step in history.values()[-WINDOW:]]
            kept[name] = {"values": values, "smooth": bool(hints[name])}
        return {"scalars": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: ``state`` is of another form than ``state_dict`` has.
        """
        kept = state["scalars"]
        if not isinstance(kept, dict) or not all(_is_kept(name, history) for name, history in kept.items()):
            raise ValueError("the values that were logged last are of another form")
        self._kept = kept

    def last_steps(self) -> set[int]:
        """The iterations of the values that would be written next, from the checkpoint."""
        return {history["values"][-1][1] for history in self._kept.values() if history["values"]}

    def resume_after(self, written: int) -> None:
        """
        Args:
            written: iteration of the last row of metrics.json, -1 where there is none.
        """
        self._written = written

    def before_train(self) -> None:
        if self._written is None:
            return
        storage, done = self.trainer.storage, self.trainer.start_iter - 1  # the iteration of the checkpoint
        for name, history in self._kept.items():
            for value, step in history["values"]:
                storage.put_scalar(name, value, smoothing_hint=history["smooth"], cur_iter=step)
        for writer in self._writers:
            if isinstance(getattr(writer, "_last_write", None), int):
                setattr(writer, "_last_write", self._written)  # noqa: B010  of JSONWriter and TensorboardXWriter
        if self._kept and self._written < done:
            storage.iter = done
            self._make_up_for(done)
            storage.iter = self.trainer.start_iter

    def _make_up_for(self, done: int) -> None:
        storage, last = self.trainer.storage, self.trainer.max_iter - 1
        if self._eval_period > 0 and (done + 1) % self._eval_period == 0 and done < last:
            logger.info(f"the evaluation after {done + 1} iterations is missing: evaluating")
            trainer: Any = self.trainer  # a DynTrainer, which imports this module
            scalars = flatten_results_dict(trainer.test(trainer.cfg, trainer.model) or {})
            storage.put_scalars(**{k: float(v) for k, v in scalars.items()}, smoothing_hint=False, cur_iter=done)
            comm.synchronize()
        if (done + 1) % self._write_period == 0 or done == last:
            for writer in self._writers:
                writer.write()
