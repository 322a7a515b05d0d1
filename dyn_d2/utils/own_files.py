"""Reading what dyn_d2 has written: a file that was cut off or edited ends in one message that names it."""

import json
import os
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

# What numpy and zipfile raise for a file that is cut off, or no archive of arrays.
ARRAY_ERRORS = (
    AttributeError,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_json_of(path: str | os.PathLike, what: str, kind: type = dict) -> Any:
    """The content of a json file.

    Args:
        what: it should be, for the message.
        kind: of the top level, dict or list.

    Raises:
        OSError: it cannot be opened.
        ValueError: no json, or another top level; names the file. Names that an object gives twice are that too.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_once)
    except RecursionError:
        raise ValueError(f"{path} ({what}) is not valid json: it is nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"{path} ({what}) is not valid json: {error}.") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path} ({what}) does not hold a json {'object' if kind is dict else 'list'}.")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def is_number(value: Any) -> bool:
    """A number that a float can hold, NaN and infinity included, and no truth value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) <= sys.float_info.max


@contextmanager
def arrays_of(path: str | os.PathLike, what: str) -> Iterator[Any]:
    """The arrays of an ``.npz`` by name, read without running code.

    Raises:
        ValueError: the file is none, or the block finds that it is not ``what``; names the file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            yield file
    except ARRAY_ERRORS as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise ValueError(f"{path} is no {what}: {str(text).rstrip('.')}.") from error
