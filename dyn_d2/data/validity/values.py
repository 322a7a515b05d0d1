"""What counts as a number, a size, an id or a flag, in json files and in records that Python code registered."""

import math
import numbers
from collections.abc import Iterable
from typing import Any, TypeGuard

import numpy as np

LARGEST_ID = 2**63 - 1  # numpy sorts the ids of images; beyond this it would turn them into floats


def is_number(value: Any) -> TypeGuard[float]:
    """Whether ``value`` is a real number of any type, and no bool."""
    kind = type(value)
    return kind is float or kind is int or (isinstance(value, numbers.Real) and kind is not bool)


def is_integer(value: Any) -> TypeGuard[int]:
    """Whether ``value`` is an integer of any type, and no bool."""
    return type(value) is int or (isinstance(value, numbers.Integral) and not isinstance(value, bool))


def is_sequence(value: Any) -> bool:
    """Whether ``value`` is a list, a tuple or an array of one dimension."""
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1)


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether ``value`` is a real number that a float can hold, neither NaN nor infinite."""
    try:
        return is_number(value) and math.isfinite(value)
    except OverflowError:  # an integer of more than 308 digits
        return False


def whole(value: Any) -> int | None:
    """``value`` as an integer where it is one, 96.0 included; else None."""
    if type(value) is int:
        return value
    if is_integer(value) or (is_finite(value) and float(value).is_integer()):
        return int(value)
    return None


# Run-length masks count pixels in 32 bits, and no reader of images opens so many.
MOST_PIXELS = 2**32
LONGEST_SIDE = 2**20


def size(value: Any) -> int | None:
    """``value`` as a number of pixels, from 1 to ``LONGEST_SIDE``; else None."""
    number = whole(value)
    return number if number is not None and 0 < number <= LONGEST_SIDE else None


def identity(value: Any) -> int | str | None:
    """``value`` as the id of an image or annotation: an integer of 64 bits or a text; else None.

    1.0 is 1; True, NaN, 1.5 and null are no ids.
    """
    if isinstance(value, str):
        return value if value and "\0" not in value else None  # numpy cuts a text at its zeros
    number = whole(value)
    return number if number is not None and -LARGEST_ID <= number <= LARGEST_ID else None


def flag(value: Any) -> int | None:
    """``value`` of a yes-or-no field as 0 or 1; null is 0, as where the field is missing. None: neither."""
    if value is None:
        return 0
    if type(value) is bool or type(value).__name__ in ("bool_", "bool"):
        return int(value)
    number = whole(value)
    return number if number in (0, 1) else None


def shown(values: Iterable[Any], limit: int = 5) -> str:
    """Values for a message: at most ``limit`` of them, each of them short."""
    texts = [brief(value) for value in values]
    return ", ".join(texts[:limit]) + (f", ... ({len(texts)} in all)" if len(texts) > limit else "")


def brief(value: Any, length: int = 60) -> str:
    """``repr`` of a value that a stranger's file holds, cut to ``length`` characters."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return "an integer of more than 60 digits"
    if isinstance(value, list | tuple | dict) and len(value) > 8:
        kind = type(value).__name__
        return f"a {kind} of {len(value)} entries"
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested without end, or an integer inside that is too long to print
        return f"a {type(value).__name__}"
    return text if len(text) <= length else text[: length - 3] + "..."
