"""What the scripts beside the tests that try many cases and count have in common."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def until_stopped() -> Iterator[None]:
    """Ctrl-C and SIGTERM (``timeout 100 python ...``) end the block, and what comes after it is still done."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        yield


def say_into(log: Path, mode: str = "wb") -> None:
    """Of a forked process: all that it prints goes to ``log``, whatever its parent had in place of the streams."""
    with open(log, mode) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))


@contextlib.contextmanager
def in_time(seconds: int) -> Iterator[None]:
    """
    Raises:
        TimeoutError: from within the block, which hangs.
    """

    def late(number: int, frame: Any) -> None:
        raise TimeoutError("hang")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
