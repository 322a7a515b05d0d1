"""Scalars and images of a training run, and the writers that bring them to file and console."""

import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from typing import Any

import numpy as np
import torch
from fvcore.common.history_buffer import HistoryBuffer

from .file_io import PathManager

_storages: list["EventStorage"] = []


def get_event_storage() -> "EventStorage":
    """The storage of the innermost ``with EventStorage(...)``.

    Raises:
        RuntimeError: there is none.
    """
    if not _storages:
        raise RuntimeError("get_event_storage() only works inside a 'with EventStorage(...)' block, as in training.")
    return _storages[-1]


def has_event_storage() -> bool:
    """Whether the code runs inside a ``with EventStorage(...)``."""
    return bool(_storages)


class EventStorage:
    """Collects what a run reports about itself. A scalar's value is stored with the iteration that it belongs to."""

    def __init__(self, start_iter: int = 0):
        self._history: dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothing_hints: dict[str, bool] = {}
        self._latest_scalars: dict[str, tuple[float, int]] = {}
        self._iter = start_iter
        self._current_prefix = ""
        self._vis_data: list[tuple[str, Any, int]] = []

    def put_image(self, img_name: str, img_tensor: torch.Tensor | np.ndarray) -> None:
        """Keep an RGB image (3, H, W), uint8 in [0, 255] or float in [0, 1], until TensorBoard has written it."""
        self._vis_data.append((img_name, img_tensor, self._iter))

    def put_scalar(
        self, name: str, value: float | torch.Tensor, smoothing_hint: bool = True, cur_iter: int | None = None
    ) -> None:
        """Add one value to the history of ``name``.

        Args:
            smoothing_hint: the value is noisy, so that writers show a median over some iterations.
            cur_iter: the iteration that it belongs to, the current one by default.

        Raises:
            ValueError: the same name was used with another hint.
        """
        name = self._current_prefix + name
        if self._smoothing_hints.setdefault(name, smoothing_hint) != smoothing_hint:
            raise ValueError(f"Scalar '{name}' was put before with smoothing_hint={not smoothing_hint}: use one hint.")
        step = self._iter if cur_iter is None else cur_iter
        value = float(value)
        self._history[name].update(value, step)
        self._latest_scalars[name] = (value, step)

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs) -> None:
        """``put_scalar`` for each keyword argument."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def history(self, name: str) -> HistoryBuffer:
        """All values of one scalar.

        Raises:
            KeyError: it was never put.
        """
        if name not in self._history:
            raise KeyError(f"No scalar '{name}' was put so far.")
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        """Name -> all values."""
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """Name -> (last value, its iteration)."""
        return self._latest_scalars

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """How many values of ``name`` belong to its last ``window_size`` iterations."""
        values = self._history[name].values()
        oldest = values[-1][1] - window_size
        return next((n for n, (_, step) in enumerate(reversed(values)) if step <= oldest), len(values))

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Like ``latest``, with a median over the last ``window_size`` iterations for noisy scalars."""
        return {
            name: (
                self._history[name].median(self.count_samples(name, window_size))
                if self._smoothing_hints[name]
                else value,
                step,
            )
            for name, (value, step) in self._latest_scalars.items()
        }

    def smoothing_hints(self) -> dict[str, bool]:
        """Name -> whether its values are noisy."""
        return self._smoothing_hints

    def step(self) -> None:
        """Go on to the next iteration (or assign ``iter``)."""
        self._iter += 1

    @property
    def iter(self) -> int:
        """The current iteration, the same as the trainer's."""
        return self._iter

    @iter.setter
    def iter(self, value: int) -> None:
        self._iter = int(value)

    @property
    def iteration(self) -> int:
        """An older name of ``iter``."""
        return self._iter

    def __enter__(self) -> "EventStorage":
        _storages.append(self)
        return self

    def __exit__(self, *exception) -> None:
        _storages.remove(self)

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """All scalars put inside of the block get the prefix ``name/``."""
        outer, self._current_prefix = self._current_prefix, name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._current_prefix = outer

    def clear_images(self) -> None:
        """Forget the images, once they are written."""
        self._vis_data = []


class EventWriter:
    """Takes what is new in the current storage and writes it somewhere."""

    def write(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} has to define write().")

    def close(self) -> None:
        """Called once at the end of training."""


class JSONWriter(EventWriter):
    """Appends the scalars to a file with one json object a line and iteration."""

    def __init__(self, json_file: str, window_size: int = 20):
        """``window_size``: iterations over which noisy scalars are smoothed."""
        self._file_handle = PathManager.open(json_file, "a")
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        lines = defaultdict(dict)
        for name, (value, step) in get_event_storage().latest_with_smoothing_hint(self._window_size).items():
            if step > self._last_write:
                lines[step][name] = value
        for step, scalars in sorted(lines.items()):
            # One write per line: a process that is killed in between leaves whole lines.
            self._file_handle.write(json.dumps({**scalars, "iteration": step}, sort_keys=True) + "\n")
        self._last_write = max(lines, default=self._last_write)
        self._file_handle.flush()
        if hasattr(self._file_handle, "fileno"):
            os.fsync(self._file_handle.fileno())

    def close(self) -> None:
        self._file_handle.close()


class TensorboardXWriter(EventWriter):
    """Writes scalars and images for TensorBoard."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs):
        """``kwargs`` go to ``torch.utils.tensorboard.SummaryWriter``."""
        self._window_size = window_size
        self._arguments = {"log_dir": log_dir, **kwargs}
        self._last_write = -1

    @cached_property
    def _writer(self):
        # Imported and opened at the first write: runs that never write need no tensorboard.
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(**self._arguments)

    def write(self) -> None:
        storage = get_event_storage()
        newest = self._last_write
        for name, (value, step) in storage.latest_with_smoothing_hint(self._window_size).items():
            if step > self._last_write:
                self._writer.add_scalar(name, value, step)
                newest = max(newest, step)
        self._last_write = newest
        for name, image, step in storage._vis_data:
            self._writer.add_image(name, image, step)
        storage.clear_images()

    def close(self) -> None:
        if "_writer" in vars(self):
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """One console line: time left, iteration, losses, times, learning rate and the peak of GPU memory."""

    def __init__(self, max_iter: int | None = None, window_size: int = 20):
        """``max_iter``: the last iteration, for the time left; None leaves it out."""
        self.logger = logging.getLogger("detectron2.utils.events")
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None

    def _eta(self, storage: EventStorage) -> str | None:
        if self._max_iter is None:
            return None
        remaining = self._max_iter - storage.iter - 1
        if "time" in storage.histories():
            seconds = storage.history("time").median(1000) * remaining
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
            return str(timedelta(seconds=int(seconds)))
        # Without measured iterations: the time since the last call, which is noisier.
        now, last = (storage.iter, time.perf_counter()), self._last_write
        self._last_write = now
        if last is None or now[0] <= last[0]:
            return None
        return str(timedelta(seconds=int((now[1] - last[1]) / (now[0] - last[0]) * remaining)))

    def _medians(self, storage: EventStorage, part: str) -> list[str]:
        return [
            f"{name}: {history.median(storage.count_samples(name, self._window_size)):.4g}"
            for name, history in storage.histories().items()
            if part in name
        ]

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            return  # the call after training; its progress is known already
        histories = storage.histories()
        eta = self._eta(storage)
        parts = [f"eta: {eta}"] if eta else []
        parts.append(f"iter: {storage.iter}")
        parts += self._medians(storage, "loss") + self._medians(storage, "[metric]")
        if "time" in histories:
            parts.append(f"time: {histories['time'].global_avg():.4f}")
            parts.append(f"last_time: {histories['time'].latest():.4f}")
        if "data_time" in histories:
            window = storage.count_samples("data_time", self._window_size)
            parts.append(f"data_time: {histories['data_time'].avg(window):.4f}")
            parts.append(f"last_data_time: {histories['data_time'].latest():.4f}")
        parts.append(f"lr: {histories['lr'].latest():.5g}" if "lr" in histories else "lr: N/A")
        if torch.cuda.is_available():
            parts.append(f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M")
        self.logger.info(" " + "  ".join(parts))
