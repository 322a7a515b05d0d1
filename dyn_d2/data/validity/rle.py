"""Run-length masks, judged without pycocotools: its C code reads past the end of a damaged one, or never returns from
it, and no signal handler runs there.

A mask of H x W pixels is the lengths of its runs of 0 and 1 in turn, column by column, beginning with 0; they add up
to H * W. Uncompressed, "counts" is the list of these lengths. Compressed, it is a text in which each length from the
fourth on is given as the difference to the one two before it, in groups of five bits, the lowest first: each character
is 48 plus five bits, plus 32 where another group follows; the highest bit of the last group is the sign (COCO API,
maskApi.c, ``rleToString``).
"""

from typing import Any

import numpy as np

from .values import brief, is_integer, is_sequence, whole

# Seven groups of five bits hold any difference of lengths in an image of up to 2^32 pixels.
_GROUPS = 7


class RleError(ValueError):
    """A run-length mask that is none; the message says what is wrong with it."""


def run_lengths(rle: Any, height: int | None = None, width: int | None = None) -> np.ndarray:
    """The lengths of the runs, (R,) int64, of 0 and 1 in turn.

    Args:
        rle: a dict with "size" (height, width) and "counts": a list of integers, or a compressed text or bytes.
        height, width: of the image, which "size" has to be; None where they are unknown.

    Raises:
        RleError: it is damaged, or of another size.
    """
    rows, columns = _size(rle)
    if height not in (None, rows) or width not in (None, columns):
        sides = f"{'?' if width is None else width} x {'?' if height is None else height}"
        raise RleError(f"run-length mask of size {[rows, columns]} in an image of {sides}")
    counts = rle.get("counts")
    if isinstance(counts, str | bytes):
        lengths = _decompress(counts)
    elif is_sequence(counts):
        lengths = _listed(counts)
    else:
        raise RleError(f'run-length mask whose "counts" is {brief(counts)}, neither a text nor a list')
    if (lengths < 0).any():
        raise RleError('run-length mask whose "counts" has a run of negative length: it is damaged')
    total = int(lengths.sum())
    if total != rows * columns:
        raise RleError(
            f'run-length mask whose "counts" covers {total} pixels, not the {rows * columns} of its size '
            f"{[rows, columns]}: it is damaged"
        )
    return lengths


def area(lengths: np.ndarray) -> int:
    """How many pixels a mask has, from its run lengths."""
    return int(lengths[1::2].sum())


def canonical(lengths: np.ndarray) -> np.ndarray:
    """The same mask without empty runs, except that the first, of 0, may be empty.

    pycocotools' intersection of two masks ends at a place where both have an empty run.
    """
    if len(lengths) < 2 or (lengths[1:] > 0).all():
        return lengths
    values = np.arange(len(lengths)) % 2
    kept = lengths > 0
    values, lengths = values[kept], lengths[kept]
    starts = np.flatnonzero(np.diff(values, prepend=-1))
    merged = np.add.reduceat(lengths, starts) if len(lengths) else lengths
    return np.concatenate([[0], merged]) if len(values) and values[0] else merged


def compress(lengths: np.ndarray) -> str:
    """Run lengths as a compressed text, which :func:`run_lengths` reads."""
    text = bytearray()
    for i, length in enumerate(lengths.tolist()):
        value = length - int(lengths[i - 2]) if i > 2 else length
        while True:
            group, value = value & 31, value >> 5
            more = value != (-1 if group & 16 else 0)
            text.append(48 + group + (32 if more else 0))
            if not more:
                break
    return text.decode("ascii")


def decode(lengths: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width) bool."""
    pixels = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return pixels.reshape(width, height).T


def _size(rle: Any) -> tuple[int, int]:
    if not isinstance(rle, dict) or "counts" not in rle:
        raise RleError(f'run-length mask without "counts": {brief(rle)}')
    given = rle.get("size")
    sides = [whole(side) for side in given] if given is not None and is_sequence(given) else []
    known = [side for side in sides if side is not None and side > 0]
    if len(sides) != 2 or len(known) != 2:
        raise RleError(f'run-length mask whose "size" is {brief(given)}, not [height, width]')
    return known[0], known[1]


def _listed(counts: Any) -> np.ndarray:
    values = counts.tolist() if isinstance(counts, np.ndarray) else counts
    if not values or not all(is_integer(value) for value in values) or max(map(abs, values)) >= 2**32:
        raise RleError('run-length mask whose "counts" are no list of lengths')
    return np.array(values, dtype=np.int64)


def _decompress(counts: str | bytes) -> np.ndarray:
    try:
        text = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError:
        text = b"\0"
    codes = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63:
        raise RleError(f'run-length mask whose "counts" {brief(counts, 30)} is no compressed code')
    last = codes < 32  # groups that end a number
    if not last[-1]:
        raise RleError('run-length mask whose "counts" ends in the middle of a number: it was cut off')
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _GROUPS:
        raise RleError('run-length mask whose "counts" has a number of more than 32 bits: it is damaged')
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((codes & 31) << (5 * place), starts)
    negative = (codes[ends] & 16).astype(bool)
    numbers = np.where(negative, numbers - (1 << (5 * lengths)), numbers)
    # From the fourth on, each is relative to the one two before.
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers
