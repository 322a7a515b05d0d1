"""How a tool ends when what it was given is wrong: with one message on stderr and exit status 1, without a traceback.

``DYN_D2_TRACEBACK=1`` in the environment shows the traceback all the same. Errors of any other kind always have theirs.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from .extras import how_to_install

TRACEBACK = "DYN_D2_TRACEBACK"

# What Python, Detectron2 and this package raise for bad values; a bug may raise them too, see ``wrong_input``.
_OF_INPUT = (ValueError, KeyError, OSError, AssertionError, NotImplementedError)


class UserError(RuntimeError):
    """Something that was given is wrong; the message names it and the remedy, nobody needs to see code."""


@contextmanager
def wrong_input() -> Iterator[None]:
    """Inside the block only given things (command line, config, files) are looked at: an error of Python's own types is
    about them and becomes a UserError, and so does a missing package that an extra brings. A message that is no
    sentence, as of a failed look-up in a dict, stays."""
    try:
        yield
    except _OF_INPUT as error:
        text = describe(error)
        if isinstance(error, UserError) or " " not in text:
            raise
        raise UserError(text) from error
    except ImportError as error:
        remedy = how_to_install(error.name)
        if not remedy:
            raise
        raise UserError(f"{remedy} ({error}).") from error


def describe(error: BaseException) -> str:
    """The message of an error as it was written (a KeyError's own text is quoted)."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


@contextmanager
def one_message(prefix: str = "") -> Iterator[None]:
    """A UserError inside the block ends the process with ``tool: message`` on stderr and status 1."""
    try:
        yield
    except UserError as error:
        if os.environ.get(TRACEBACK):
            raise
        _note_in_log_files(str(error))
        sys.exit(f"{prefix}{Path(sys.argv[0]).name}: {error}")
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        sys.exit(130)


def run_tool(main: Callable[[], Any]) -> NoReturn:
    """Call ``main()`` of a tool of one process and exit with the status that it returns."""
    with one_message(), wrong_input():
        sys.exit(main())


def _note_in_log_files(message: str) -> None:
    """The console gets the message at the end anyway."""
    logger = logging.getLogger("dyn_d2")
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, message, (), None)
    for handler in logger.handlers:
        if getattr(handler, "stream", None) not in (sys.stdout, sys.stderr):
            handler.handle(record)
