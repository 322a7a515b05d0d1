"""Evaluations whose scores are nobody's results."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def quiet_tables() -> Iterator[None]:
    """No log below errors and no print inside the block: tables of scores of a trial would look like results."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w") as nothing, redirect_stdout(nothing):
            yield
    finally:
        logging.disable(disabled)
