"""How a tool ends when something goes wrong: with one message on stderr and exit status 1, without a traceback.

What was given is wrong: the message names it and the remedy. The machine refuses (full disk, no memory, a process that
was killed): the message says what, and how to go on. Whatever else escapes is a defect of dyn_d2: one line says so, and
where the traceback lies. ``DYN_D2_TRACEBACK=1`` in the environment shows the traceback instead.
"""

import errno
import logging
import os
import re
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from .extras import how_to_install

TRACEBACK = "DYN_D2_TRACEBACK"
RESUME = "--resume goes on from the last checkpoint."

# What Python, Detectron2 and this package raise for bad values; a bug may raise them too, see ``wrong_input``.
_OF_INPUT = (ValueError, KeyError, OSError, AssertionError, NotImplementedError)
# How torch says that the machine refuses, as a RuntimeError: pattern -> what to do.
_OF_MACHINE = (
    (
        r"DataLoader worker .*(killed by signal|exited unexpectedly)",
        "a process that loads images was killed, often for lack of memory: lower DATALOADER.NUM_WORKERS. " + RESUME,
    ),
    (r"out of memory|can't allocate memory", f"lower SOLVER.IMS_PER_BATCH or the sizes of INPUT. {RESUME}"),
    (r"shared memory|Too many open files", f"lower DATALOADER.NUM_WORKERS, or raise the limit. {RESUME}"),
    (
        r"PytorchStreamWriter failed writing|unexpected pos \d+ vs \d+",
        f"a checkpoint could not be written, as on a full disk: make room. {RESUME}",
    ),
)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


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
        if isinstance(error, UserError | BrokenPipeError) or " " not in text or of_machine(error):
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


def of_machine(error: BaseException) -> str:
    """What to tell if the machine refused something, with the way to go on; "" for any other error."""
    if isinstance(error, UserError):
        return ""
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"{_where(error)}: make room. {RESUME}"
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{_where(error)}: make it writable, or choose another OUTPUT_DIR. {RESUME}"
    if isinstance(error, MemoryError):
        return f"there is no more memory: {_OF_MACHINE[1][1]}"
    text = str(error)
    first = text.splitlines()[0] if text else ""
    if isinstance(error, (RuntimeError, OSError)):
        # torch hides the error of the file behind one of its own.
        behind = error.__context__ or error.__cause__
        if isinstance(error, RuntimeError) and isinstance(behind, OSError) and (told := of_machine(behind)):
            return told
        for pattern, remedy in _OF_MACHINE:
            if re.search(pattern, text, re.IGNORECASE):
                return f"{first.rstrip('. ')}: {remedy}"
    return ""


def _where(error: OSError) -> str:
    names = [str(name) for name in (error.filename, error.filename2) if name]
    return f"{error.strerror}{': ' if names else ''}{', '.join(names)}"


def message_of(error: Exception) -> str:
    """What a tool that ``error`` ends tells: one message. The traceback of a defect is left in a file."""
    if isinstance(error, UserError):
        return str(error)
    told = of_machine(error)
    if told:
        return told
    if isinstance(error, OSError) and error.strerror:
        return str(error)
    text = (describe(error).splitlines() or [""])[0]
    path = leave_traceback(error)
    return (
        f"{type(error).__name__}: {text[:300]}{'' if text.endswith('.') else '.'} This is a defect of dyn_d2, please "
        f"report it with the traceback, which is in {path} ({TRACEBACK}=1 shows it)."
    )


def leave_traceback(error: BaseException) -> Path:
    """Write the traceback beside the log, or where that cannot be, to the folder of temporary files."""
    text = "".join(traceback.format_exception(error))
    folders = [path.parent for path in _log_files()]
    for folder in dict.fromkeys([*folders, Path(tempfile.gettempdir())]):
        try:
            handle, path = tempfile.mkstemp(prefix="traceback_", suffix=".txt", dir=folder)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            return Path(path)
        except OSError:
            continue
    sys.stderr.write(text)
    return Path("the lines above")


@contextmanager
def one_message(prefix: str = "") -> Iterator[None]:
    """An error inside the block ends the process with ``tool: message`` on stderr and status 1."""
    shows = bool(os.environ.get(TRACEBACK))
    before, logging.raiseExceptions = logging.raiseExceptions, shows  # a log on a full disk is no reason for tracebacks
    try:
        yield
    except Exception as error:
        if isinstance(error, BrokenPipeError) and not _is_read(sys.stdout):
            sys.exit(128 + signal.SIGPIPE)  # as a program that the signal ends: nobody waits for a message
        if shows:
            raise
        message = message_of(error)
        note_in_log_files(message)
        sys.exit(f"{prefix}{Path(sys.argv[0]).name}: {message}")
    except KeyboardInterrupt as stop:
        print(": ".join([Path(sys.argv[0]).name, "interrupted", *map(str, stop.args)]), file=sys.stderr)
        sys.exit(130)
    finally:
        logging.raiseExceptions = before
        _is_read(sys.stdout)


def _is_read(stream: Any) -> bool:
    """Writes out what ``stream`` holds. Where nobody reads it any more, as behind ``| head``, the rest goes nowhere, so
    that the interpreter, which writes out once more at its end, has nothing to complain of."""
    try:
        stream.flush()
        number = stream.fileno()
        closed = hasattr(select, "poll") and _is_closed(
            number
        )  # what a failed write held is gone, and flush is content
    except BrokenPipeError:
        number, closed = stream.fileno(), True
    except (OSError, ValueError, AttributeError):  # a full disk, a closed or missing stream: another's concern
        return True
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return not closed


def _is_closed(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def run_tool(main: Callable[[], Any]) -> NoReturn:
    """Call ``main()`` of a tool of one process and exit with the status that it returns."""
    with one_message(), wrong_input():
        sys.exit(main())


def _log_files() -> list[Path]:
    """Files that the log goes to: handlers of logging have a name for it, those of Detectron2 a stream."""
    handlers = logging.getLogger("dyn_d2").handlers
    names = [getattr(h, "baseFilename", None) or getattr(getattr(h, "stream", None), "name", None) for h in handlers]
    return [Path(name) for name in names if isinstance(name, str) and os.path.isfile(name)]


def note_in_log_files(message: str) -> None:
    """Write the message of an error to the log's file; the console gets it at the end anyway."""
    logger = logging.getLogger("dyn_d2")
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, message, (), None)
    for handler in logger.handlers:
        if getattr(handler, "stream", None) not in (sys.stdout, sys.stderr):
            handler.handle(record)
