"""Values that people's files hold where something else belongs, and damage to files as a whole."""

import json
import random
from pathlib import Path
from typing import Any

INFINITE = float("inf")
NAMES = [
    "a b.png",
    "Bild_ä.png",
    "狐.png",
    "sub/x.png",
    "a#1%20.png",
    "UPPER.PNG",
    "q'uote\".png",
    "a.b.c.png",
    "-x.png",
]


def odd(rng: random.Random) -> Any:
    """Any value that json has."""
    return rng.choice(
        [
            None, "", " ", "0", "1", "2", "abc", "NaN", "1.0", "true", True, False, 0, -1, 1, 2, 3, 1.0, 2.0, 1.5,
            -0.0, -3.5,
            0.5, 1e-30, 1e30, 1e308, -1e308, float("nan"), INFINITE, -INFINITE, 10**12, 10**30, -(10**30), 10**400,
            2**31, 2**32,
            2**53 + 1, 2**63 - 1, 2**63, [], [[]], {}, [None], [1], [1, 2], ["1"], {"a": 1}, {"id": 1}, [[1, 2], [3,
            4]], "\0",
            "a\0b", "\u00e9", "\ud83e\udd8a", "../x", "a" * 3000, [[[[[[]]]]]], [float("nan")], [1e400], [True],
            "\n", "\ud800",
        ]
    )  # fmt: skip


def retyped(rng: random.Random, value: Any) -> Any:
    """``value`` in another type, or slightly off."""
    ways = [
        lambda v: str(v),
        lambda v: [v],
        lambda v: {"value": v},
        lambda v: json.dumps(v),
        lambda v: [v, v],
        lambda v: None,
    ]
    if isinstance(value, bool | int | float):
        ways += [
            lambda v: float(v) if abs(v) < 1e300 else v, lambda v: v + 0.5, lambda v: -v, lambda v: v * 1000,
            lambda v: int(v),
            lambda v: bool(v), lambda v: 0, lambda v: v + 1, lambda v: v / 100, lambda v: f" {v} ", lambda v: v - 1,
            lambda v: f"{v}px",
        ]  # fmt: skip
    if isinstance(value, str):
        ways += [
            lambda v: v.upper(),
            lambda v: v + " ",
            lambda v: v[:-1],
            lambda v: v.replace("/", "\\"),
            lambda v: "./" + v,
        ]
    if isinstance(value, list):
        ways += [
            lambda v: dict(enumerate(v)),
            lambda v: v[:-1],
            lambda v: v + v,
            lambda v: v[::-1],
            lambda v: [str(x) for x in v],
        ]
        ways += [lambda v: [], lambda v: [*v, None], lambda v: v[0] if v else v]
    if isinstance(value, dict):
        ways += [lambda v: list(v.values()), lambda v: list(v.items()), lambda v: {}, lambda v: {**v, "extra": 1}]
    try:
        return rng.choice(ways)(value)
    except (ValueError, OverflowError, TypeError):  # of an odd value that an earlier change left
        return None


def dumps(value: Any) -> str:
    """json with NaN, infinity and lone surrogates, as careless programs write it."""
    return json.dumps(value)


def damage_text(rng: random.Random, path: Path) -> str:
    """Damage a text file as a whole; returns how."""
    data = path.read_bytes()
    place = rng.randrange(max(len(data), 1))
    text = data.decode("utf-8", "replace")
    ways = {
        "cut off": lambda: data[:place],
        "empty": lambda: b"",
        "beginning cut off": lambda: data[max(place, 1) :],
        "a byte changed": lambda: data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :],
        "a byte left out": lambda: data[:place] + data[place + 1 :],
        "bytes of 0": lambda: data[:place] + b"\0" * 8 + data[place + 8 :],
        "all bytes of 0": lambda: b"\0" * len(data),
        "UTF-16": lambda: text.encode("utf-16"),
        "UTF-32": lambda: text.encode("utf-32"),
        "Latin-1": lambda: text.replace("a", "ä", 1).encode("latin-1", "replace"),
        "byte order mark": lambda: b"\xef\xbb\xbf" + data,
        "twice": lambda: data + data,
        "Windows' line ends": lambda: text.replace("\n", "\r\n").encode(),
        "random bytes": lambda: bytes(rng.randrange(256) for _ in range(200)),
        "a picture": lambda: b"\x89PNG\r\n\x1a\n" + data[:50],
        "zip": lambda: b"PK\x03\x04" + data[:50],
        "single quotes": lambda: text.replace('"', "'").encode(),
        "a slice swapped": lambda: data[place:] + data[:place],
        "a letter doubled": lambda: data[:place] + data[place : place + 1] * 2 + data[place + 1 :],
    }
    how = rng.choice(sorted(ways))
    path.write_bytes(ways[how]())
    return f"{path.name}: {how} (place {place})"
