"""What a value of a config key may be: the words in which the tables of ``ranges.py`` and of methods are written."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

PIXELS = 100_000  # no side of an image, and
CHANNELS = 16_384  # no width of a layer, and
LAYERS = 1000  # no number of layers or blocks is larger: beyond lies a slip of the hand, and memory ends without a word


class Rule(NamedTuple):
    """
    Attributes:
        fits: whether a value may be that of the key.
        text: what to use in place of one that does not fit: "use ...".
        texts: the key is a list of nothing but text, such as class names.
    """

    fits: Callable[[Any], bool]
    text: str
    texts: bool = False

    def __or__(self, other: "Rule") -> "Rule":
        return Rule(lambda value: self.fits(value) or other.fits(value), f"{self.text}, or {other.text}")


Rules = Mapping[str, Rule]


def whole(low: int, high: int = 2**31 - 1) -> Rule:
    """A whole number from ``low`` to ``high``."""
    upper = f" to {high}" if high < 2**31 - 1 else ""
    said = f"from {low}{upper}" if upper else f"of {low} or more"
    return Rule(lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high, f"a whole number {said}")


def number(low: float = -math.inf, high: float = math.inf, *, above: bool = False, below: bool = False) -> Rule:
    """A finite number from ``low`` to ``high``; with ``above`` and ``below`` neither of the two themselves."""

    def fits(value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            return False
        return (low < value if above else low <= value) and (value < high if below else value <= high)

    if math.isinf(low):
        return Rule(fits, "a finite number")
    if math.isinf(high):
        return Rule(fits, f"a finite number above {low:g}" if above else f"a finite number of {low:g} or more")
    left, right = "(" if above else "[", ")" if below else "]"
    return Rule(fits, f"a number in {left}{low:g}, {high:g}{right}")


def share() -> Rule:
    """A number from 0 to 1."""
    return number(0, 1)


def positive_share() -> Rule:
    return number(0, 1, above=True)


def positive() -> Rule:
    return number(0, above=True)


def choice(*values: Any) -> Rule:
    """One of ``values``."""
    shown = [repr(value) for value in values]
    said = shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"
    return Rule(lambda v: any(type(v) is type(value) and v == value for value in values), said)


def each(rule: Rule, at_least: int = 1, at_most: int | None = None, *, rising: bool = False) -> Rule:
    """A list of so many values that fit ``rule``; with ``rising`` none is below the one before it."""
    most = math.inf if at_most is None else at_most

    def fits(value: Any) -> bool:
        if not isinstance(value, list | tuple) or not at_least <= len(value) <= most:
            return False
        if not all(rule.fits(part) for part in value):
            return False
        return not rising or all(a <= b for a, b in zip(value, value[1:], strict=False))

    if at_most == at_least:
        count = f"a list of {at_least} values"
    elif at_most is not None:
        count = f"a list of {at_least} to {at_most} values"
    else:
        count = "a list that is not empty" if at_least else "a list"
    return Rule(fits, f"{count}, each {rule.text}" + (", in rising order" if rising else ""), rule.texts)


def empty() -> Rule:
    """The list without values."""
    return Rule(lambda v: isinstance(v, list | tuple) and not v, "[]")


def text(*, filled: bool = False) -> Rule:
    return Rule(lambda v: isinstance(v, str) and (bool(v.strip()) or not filled), "text, in quotes", texts=True)


def flag() -> Rule:
    return Rule(lambda v: isinstance(v, bool), "True or False")


def nothing() -> Rule:
    return Rule(lambda v: v is None, "None")


def names() -> Rule:
    """A list of text, empty or not."""
    return each(text(filled=True), 0)


def norm() -> Rule:
    """The name of a normalisation, "" for none."""
    return choice("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")


def device() -> Rule:
    def fits(value: Any) -> bool:
        try:
            torch.device(value)
        except (RuntimeError, TypeError):
            return False
        return isinstance(value, str)

    return Rule(fits, "'cpu', 'cuda' or another device of torch")


def registered(name: str, registry: Callable[[], Any]) -> Rule:
    """A name of a registry of Detectron2, which is asked for when it is needed."""

    def fits(value: Any) -> bool:
        return isinstance(value, str) and value in registry()

    return Rule(fits, f"a name of the registry {name}, whose module has been imported")


def is_finite(value: Any) -> bool:
    """Whether no number in ``value`` is NaN or infinite."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return all(is_finite(part) for part in value)
    return not isinstance(value, float) or math.isfinite(value)
