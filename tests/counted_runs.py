"""What the scripts beside the tests that try many cases and count have in common."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def until_stopped() -> Iterator[None]:
    """Ctrl-C and SIGTERM (``timeout 100 python ...``) end the block, and what comes after it is still done."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        yield


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
