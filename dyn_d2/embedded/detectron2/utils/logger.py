"""Set-up of loggers, and messages that are shown only now and then."""

import logging
import os
import sys
import time
from collections import Counter
from types import FrameType

import torch
from tabulate import tabulate
from termcolor import colored

from .file_io import PathManager

_TIME_FORMAT = "%m/%d %H:%M:%S"
_PLAIN_FORMAT = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"

_counts: Counter = Counter()
_last_times: dict = {}


class _ColourFormatter(logging.Formatter):
    """Shortens the root of the logger's name, and marks warnings and errors in red."""

    def __init__(self, root_name: str, short_name: str):
        super().__init__(colored("[%(asctime)s %(name)s]: ", "green") + "%(message)s", datefmt=_TIME_FORMAT)
        self._root = root_name + "."
        self._short = short_name + "." if short_name else ""

    def formatMessage(self, record: logging.LogRecord) -> str:
        # A copy: other handlers of the same record show the full name.
        shown = logging.makeLogRecord(vars(record))
        if shown.name.startswith(self._root):
            shown.name = self._short + shown.name[len(self._root) :]
        message = super().formatMessage(shown)
        if record.levelno == logging.WARNING:
            return colored("WARNING", "red") + " " + message
        if record.levelno >= logging.ERROR:
            return colored("ERROR", "red", attrs=["underline"]) + " " + message
        return message


class _StdoutHandler(logging.StreamHandler):
    """Writes to what ``sys.stdout`` is now, since notebooks and tests exchange it."""

    def __init__(self):
        logging.Handler.__init__(self)

    @property
    def stream(self):
        return sys.stdout


def _install(logger: logging.Logger, handler: logging.Handler, formatter: logging.Formatter) -> None:
    """Add ``handler`` in place of an earlier one of its kind, so that no line is written twice."""
    for old in [old for old in logger.handlers if type(old) is type(handler) and hasattr(old, "_engine_owned")]:
        logger.removeHandler(old)
        old.close()
    handler._engine_owned = True
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(formatter)
    logger.addHandler(handler)


def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Let the logger ``name`` write everything from level DEBUG on to the console and, if wanted, to a file.

    Calling it again replaces what an earlier call set up: the lines of a second run go to the second run's file only.

    Args:
        output: a file (ends in .txt or .log) or a folder, in which ``log.txt`` is used. Lines are appended.
        distributed_rank: only rank 0 writes to the console; the files of others end in ``.rankN``.
        abbrev_name: shown instead of ``name``; "" shows nothing. "detectron2" is shortened to "d2" by default.
        enable_propagation: also hand the records to the parent logger.
        configure_stdout: False leaves the console alone.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    plain = logging.Formatter(_PLAIN_FORMAT, datefmt=_TIME_FORMAT)

    if configure_stdout and distributed_rank == 0:
        if abbrev_name is None:
            abbrev_name = "d2" if name == "detectron2" else name
        _install(logger, _StdoutHandler(), _ColourFormatter(name, abbrev_name) if color else plain)

    if output is not None:
        file = str(output) if str(output).endswith((".txt", ".log")) else os.path.join(output, "log.txt")
        if distributed_rank > 0:
            file += f".rank{distributed_rank}"
        PathManager.mkdirs(os.path.dirname(os.path.abspath(file)))
        _install(logger, logging.FileHandler(file, mode="a", encoding="utf-8"), plain)
    return logger


def _caller() -> tuple[str, tuple]:
    """The module that called into this file, and a key for the very line."""
    frame: FrameType | None = sys._getframe(1)
    while frame.f_code.co_filename == __file__:
        frame = frame.f_back
    module = frame.f_globals["__name__"]
    return "detectron2" if module == "__main__" else module, (frame.f_code.co_filename, frame.f_lineno)


def log_first_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | tuple = "caller") -> None:
    """Log ``msg`` only the first ``n`` times.

    Args:
        lvl: level, e.g. ``logging.WARNING``.
        name: logger; the caller's module by default.
        key: what counts as a repetition: the same "caller" (line of code), the same "message", or both in a tuple.

    Raises:
        ValueError: ``key`` names anything else.
    """
    keys = (key,) if isinstance(key, str) else tuple(key)
    if not keys or not set(keys) <= {"caller", "message"}:
        raise ValueError(f"key has to be 'caller', 'message' or both, not {key!r}")
    module, line = _caller()
    identity = (line if "caller" in keys else None, msg if "message" in keys else None)
    _counts[identity] += 1
    if _counts[identity] <= n:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log the first of every ``n`` calls from one line of code."""
    module, line = _caller()
    if _counts[line] % n == 0:
        logging.getLogger(name or module).log(lvl, msg)
    _counts[line] += 1


def log_every_n_seconds(lvl: int, msg: str, n: float = 1, *, name: str | None = None) -> None:
    """Log at most once in ``n`` seconds from one line of code."""
    module, line = _caller()
    now = time.monotonic()
    if line not in _last_times or now - _last_times[line] >= n:
        _last_times[line] = now
        logging.getLogger(name or module).log(lvl, msg)


def create_small_table(small_dict: dict) -> str:
    """A table with one row: the keys above their values (floats with three digits)."""
    return tabulate(
        [list(small_dict.values())],
        headers=list(small_dict),
        tablefmt="pipe",
        floatfmt=".3f",
        stralign="center",
        numalign="center",
    )


def _log_api_usage(identifier: str) -> None:
    """Called by projects that register their own builders."""
    torch._C._log_api_usage_once("detectron2." + identifier)
