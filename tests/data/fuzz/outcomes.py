"""How a fuzzed case ends. Right: a file is refused by a message that names it, or read as a slow, obvious reading of it
says. Everything else is a finding."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dyn_d2.utils.errors import UserError

RIGHT = "right"
SILENT = "silent"  # taken although nobody can say what it means, or read as something else
TRACEBACK = "traceback"
UNCLEAR = "unclear"  # a message that does not name the file
REFUSED = "refused"  # although it is sound
HANG = "hang"  # noted by those who run a case, in a process of its own

# What a message may be; anything else is a traceback for whoever runs a tool.
MESSAGES = (ValueError, OSError, UserError, KeyError)


class Finding(Exception):
    """A case that did not end right."""

    def __init__(self, outcome: str, text: str) -> None:
        super().__init__(f"{outcome}: {text}")
        self.outcome = outcome


@dataclass
class Case:
    """Files of a data set in ``folder``, with what was done to them."""

    seed: int
    folder: Path
    rng: random.Random
    changes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep what was done, short."""
        self.changes.append(text if len(text) < 200 else text[:200] + "...")


def attempt(what: str, read: Callable[[], Any], names: Sequence[str]) -> tuple[Any, str]:
    """What ``read`` returns and "", or None and its message.

    Args:
        names: one of them has to be in the message, as a whole path or name.

    Raises:
        Finding: it ended in anything but a message, or in one that names nothing.
    """
    try:
        return read(), ""
    except MESSAGES as error:
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        if not any(name in text for name in names) or len(text) < 20:
            raise Finding(UNCLEAR, f"{what} says {type(error).__name__}: {text[:500]!r}") from error
        return None, text
    except Exception as error:
        raise Finding(TRACEBACK, f"{what} ends in {type(error).__name__}: {str(error)[:500]}") from error


def expect(what: str, message: str, right: bool, why: object = "") -> None:
    """``message`` of :func:`attempt` has to be empty where the case is ``right``, and not where it is wrong.

    Raises:
        Finding: it is the other way round.
    """
    if right and message:
        raise Finding(REFUSED, f"{what} refuses what is sound: {message[:500]}")
    if not right and not message:
        raise Finding(SILENT, f"{what} takes what is not sound ({why})")


def same(what: str, found: Any, right: Any) -> None:
    """
    Raises:
        Finding: the two differ.
    """
    if found != right:
        raise Finding(SILENT, f"{what} is {str(found)[:400]}, not {str(right)[:400]}")
