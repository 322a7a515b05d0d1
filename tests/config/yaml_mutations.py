"""Yaml files of config keys that somebody has damaged, and what each of them means: read so, or refused by name.

``python tests/config/yaml_mutations.py [COUNT] [SEED]`` tries many of them and counts; the test beside it draws some.
"""

import ast
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from counted_runs import in_time, until_stopped
from yaml_meaning import Unclear, meaning, same

from dyn_d2.config.derive import derive
from dyn_d2.config.names import config_names, configs_folder
from dyn_d2.config.ranges import all_ranges, check_ranges, default_values, rule_of
from dyn_d2.config.read import flatten, read_cfg
from dyn_d2.utils.errors import UserError

NAME, SECONDS = "mine.yaml", 10


def _words(text: str) -> list[str]:
    return text.replace("\n", "|").split("|")


_SCALARS = _words("""no|yes|on|off|True|false|null|~|0|-1|7|010|0x10|0o7|0b11|1_000|1:30|190:20:30|1e3|1.5e-3|1e999|.inf
.nan|1.|1.5
.5|+|-|2024-01-31|2024-99-99|2024-01-31T10:00:00Z|=|<<|*|&|!|!!x|@a|`a|%a|'x'|'7'|''|[]|{}|[1]|[[1]]|[no]|['a',7]|{a:1}|(1,)
(1,2|1,2|None|'None'|'1'|'True'|99999999999999999999|é|名前|...|---|'(1,)('|-0|-0.0|1__0|_1|0.1.2|+5|[1,,2]|[,]|x#y|5#1|&a
*nowhere|*x
"x"|"7"|'"7"'|""|"None"|"[1]"|"{1}"|"1+2j"|"b'x'"|"True"|"\\u0000"|"\\x41"|"'a' 'b'"||a: b|a b|x # y|!!str 7
!!int '7'|!!float 1|!!bool yes|!!binary aGk=|!!set {a}|!!python/name:os.system|&q 5|[1, 2|{a: 1|? x""")
_SCALARS += [
    "|\n  x",
    ">-\n    x\n    y",
    "\t5",
    "\u00a05",
    "\uff15",
    '"' + "-" * 9000 + '1"',
    "1" * 5000,
    f'"{"(" * 900}"',
]
_KEYS = _words("""5|no|~|2024-01-31|1.5|''|SEED.X|MODEL.DEVICE|seed|[a]|=|<<|_BASE_|__class__|keys|update|'\\0'|*a
' SEED'|'SEED '|{a: 1}|? [a]|&a SEED|!!str SEED""")
_KEYS += ["\uff33EED", "SEED\u200b"]
_BASES = _words("""5|[]|~|[5]|mine.yaml|./mine.yaml|nowhere.yaml|.|''|~/x.yaml|/|base.yaml/|~nobody/x.yaml|/dev/null
2024-01-31|no|[[base.yaml]]|ftp://x/y.yaml|[base.yaml,mine.yaml]|[base.yaml,base.yaml]|{a: b}|'base.yaml\\0'
!!str base.yaml|[base.yaml]
"base\\0.yaml\"""")
_BASES += ["x" * 5000]
_BYTES = b"\0;\xff;\xfe\xff;\xc2\x85;\xe2\x80\xa8;:;';\";#;{;};[;];,;\x1b;\xef\xbb\xbf;|;>;\t;\r;- ;&a ;*a ;!x".split(
    b";"
)
_BYTES += [b"\n", b" ", b"? ", b"<<: ", b"%YAML 9.9\n", b"---\n", b"...\n"]


@dataclass
class Case:
    kind: str
    files: dict[str, bytes] = field(default_factory=dict)
    same: dict[str, Any] | None = None  # what it has to be read as, where nothing has been damaged


# ------------------------------------------------------------------------------------------------------- what is made


def _valid(rng: random.Random) -> dict[str, Any]:
    """Some keys with values that are theirs."""
    if rng.random() < 0.4:
        node = yaml.safe_load((configs_folder() / rng.choice(config_names())).read_text(encoding="utf-8"))
        return {key: _plain(value) for key, value in flatten(node).items() if key != "_BASE_"}
    defaults = {key: value for key, value in default_values().items() if value is not None}
    found, rules = {}, all_ranges()
    for key in rng.sample(sorted(defaults), rng.randint(1, 12)):
        value, rule = _other(rng, _plain(defaults[key])), rule_of(key, rules)
        found[key] = value if rule is None or rule.fits(value) else _plain(defaults[key])
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _other(rng: random.Random, value: Any) -> Any:
    if isinstance(value, bool):
        return rng.random() < 0.5
    if isinstance(value, float) and value and rng.random() < 0.5:
        return value * rng.choice([0.5, 0.25, 1e-3])
    return value


def _tree(flat: Mapping[str, Any]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for key, value in flat.items():
        *path, name = key.split(".")
        node = root
        for part in path:
            node = node.setdefault(part, {})
        node[name] = value
    return root


def _scalar(rng: random.Random, value: Any) -> str:
    if isinstance(value, bool):
        return rng.choice(["True", "true", "yes", "on"] if value else ["False", "false", "no", "off"])
    if isinstance(value, int):
        return rng.choice(
            [str(value), f"{value:+d}" if value > 0 else str(value), hex(value) if value > 0 else str(value)]
        )
    if isinstance(value, float):
        return rng.choice([repr(value), f"{value:.17e}", f'"{value!r}"'])
    if isinstance(value, list):
        if rng.random() < 0.3 and not _holds_text(value):
            return repr(tuple(value)) if rng.random() < 0.5 else f'"{value!r}"'
        return "[" + ", ".join(_scalar_in_list(rng, part) for part in value) + "]"
    text = str(value)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return rng.choice([f'"{escaped}"', "'" + text.replace("'", "''") + "'"])


def _scalar_in_list(rng: random.Random, value: Any) -> str:
    if isinstance(value, float):
        return repr(value) if "e" not in repr(value) else f"{value:.17f}"
    return (
        _scalar(rng, value)
        if not isinstance(value, list)
        else "[" + ", ".join(_scalar_in_list(rng, p) for p in value) + "]"
    )


def _holds_text(value: Any) -> bool:
    return any(isinstance(part, str) or isinstance(part, list) and _holds_text(part) for part in value)


def _block(rng: random.Random, node: Mapping[str, Any], depth: int, step: int) -> list[str]:
    lines = []
    for name in rng.sample(sorted(node), len(node)):
        pad, value = " " * (depth * step), node[name]
        if rng.random() < 0.1:
            lines.append(f"{pad}# {rng.choice(['x', 'é', 'SEED: 5', '---'])}")
        if isinstance(value, dict) and value:
            if rng.random() < 0.2:
                lines.append(f"{pad}{name}: {_flow(rng, value)}")
            else:
                lines += [f"{pad}{name}:", *_block(rng, value, depth + 1, step)]
        else:
            anchor = f"&a{rng.randint(0, 10**9)} " if rng.random() < 0.05 else ""
            comment = "  # why" if rng.random() < 0.1 else ""
            lines.append(f"{pad}{name}: {anchor}{_scalar(rng, value)}{comment}")
    return lines


def _flow(rng: random.Random, node: Any) -> str:
    if isinstance(node, dict):
        return "{" + ", ".join(f"{name}: {_flow(rng, value)}" for name, value in node.items()) + "}"
    return (
        _scalar(rng, node)
        if not isinstance(node, list)
        else "[" + ", ".join(_scalar_in_list(rng, p) for p in node) + "]"
    )


def _written(rng: random.Random, flat: Mapping[str, Any], base: str = "") -> bytes:
    lines = _block(rng, _tree(flat), 0, rng.choice([1, 2, 4]))
    if base:
        lines.insert(rng.choice([0, len(lines)]), f"_BASE_: {base}")
    text = (
        rng.choice(["", "---\n", "\n\n", "# é\n", "\ufeff"])
        + "\n".join(lines)
        + rng.choice(["\n", "", "\n...\n", "\n\n"])
    )
    return text.replace("\n", rng.choice(["\n", "\n", "\r\n"])).encode()


def draw(seed: int) -> Case:
    """A case; the same for the same seed."""
    rng = random.Random(seed)
    flat = _valid(rng)
    files, base = {}, ""
    if rng.random() < 0.4:
        below = _valid(rng)
        files["base.yaml"], base = _written(rng, below), rng.choice(["base.yaml", "./base.yaml", "[base.yaml]"])
        flat_all = {**below, **flat}
    else:
        flat_all = flat
    if not flat_all or not flat:
        return draw(seed + 10**9)
    files[NAME] = _written(rng, flat, base)
    if rng.random() < 0.15:
        return Case("none", files, flat_all)
    kind = rng.choice(sorted(_MUTATIONS))
    victim = rng.choice(sorted(files))
    data = _MUTATIONS[kind](rng, files[victim])
    if rng.random() < 0.2:
        second = rng.choice(sorted(_MUTATIONS))
        kind, data = f"{kind}+{second}", _MUTATIONS[second](rng, data)
    return Case(kind, {**files, victim: data})


def _lines(data: bytes) -> list[bytes]:
    return data.split(b"\n")


def _entry(rng: random.Random, lines: list[bytes]) -> int:
    found = [i for i, line in enumerate(lines) if b":" in line]
    return rng.choice(found) if found else 0


def _value(rng: random.Random, data: bytes) -> bytes:
    lines = _lines(data)
    i = _entry(rng, lines)
    lines[i] = lines[i].partition(b":")[0] + b": " + rng.choice(_SCALARS).encode()
    return b"\n".join(lines)


def _key(rng: random.Random, data: bytes) -> bytes:
    lines = _lines(data)
    i = _entry(rng, lines)
    name, _, rest = lines[i].partition(b":")
    pad = name[: len(name) - len(name.lstrip())]
    lines[i] = pad + rng.choice(_KEYS).encode() + b":" + rest
    return b"\n".join(lines)


def _twice(rng: random.Random, data: bytes) -> bytes:
    lines = _lines(data)
    lines.insert(rng.randint(0, len(lines)), lines[_entry(rng, lines)])
    return b"\n".join(lines)


def _base(rng: random.Random, data: bytes) -> bytes:
    lines = [line for line in _lines(data) if not line.startswith(b"_BASE_")]
    lines.insert(rng.choice([0, len(lines)]), b"_BASE_: " + rng.choice(_BASES).encode())
    return b"\n".join(lines)


def _deep(rng: random.Random, data: bytes) -> bytes:
    many = rng.choice([40, 60, 500, 20000])
    opened, closed = rng.choice([("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", ""), ("\n" + " ", "")])
    return data + f"\nSEED: {opened * many}1{closed * rng.choice([0, many])}\n".encode()


_TAILS = """---|SEED: 5
<<: 5
<<: [1]
<<: *x
<<: {SEED: 5}
<<: {SEED: 5}|<<: {SEED: 6}
a: &a [*a]
MODEL: &m {DEVICE: cpu, X: *m}
<<: {NOTHING: 5}
SEED: &s 5|VIS_PERIOD: *s
VERSION: 1
VERSION: 3
VERSION: '2'
MODEL: {WEIGHT: x}
SEED: 5|SEED: 5
SEED
- 1
%TAG ! x
<<: [{SEED: 5}, {SEED: 6}]
<<: [{SEED: 5}, {VIS_PERIOD: 6}]
<<: {SEED: no}
<<: {MODEL: {DEVICE: cpu}}
<<: {5: 6}
<<: {_BASE_: mine.yaml}
_BASE_: &b base.yaml
SOLVER: &s {<<: *s}
INPUT: {<<: {FORMAT: RGB}, FORMAT: BGR}
OUTPUT_DIR: &o 7
? SEED|: 5
? SEED
SEED: {X: 5}
DATASETS: {TRAIN: &t [no], TEST: *t}
DATASETS: {TRAIN: &t [a], TEST: *t}
TEST: {<<: {EVAL_PERIOD: 1:30}}""".splitlines()


def _tail(rng: random.Random, data: bytes) -> bytes:
    return data + f"\n{rng.choice(_TAILS)}\n".replace("|", "\n").encode()


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randint(0, len(data))]


def _insert(rng: random.Random, data: bytes) -> bytes:
    at, end = rng.randint(0, len(data)), rng.choice([0, 0, 1, 3])
    return data[:at] + rng.choice(_BYTES) + data[at + end :]


def _indent(rng: random.Random, data: bytes) -> bytes:
    lines = _lines(data)
    i = rng.randrange(len(lines))
    lines[i] = rng.choice([b" ", b"\t", b"    "]) + lines[i] if rng.random() < 0.5 else lines[i].lstrip()
    return b"\n".join(lines)


def _move(rng: random.Random, data: bytes) -> bytes:
    lines = _lines(data)
    line = lines.pop(rng.randrange(len(lines)))
    lines.insert(rng.randint(0, len(lines)), line)
    return b"\n".join(lines)


def _whole(rng: random.Random, data: bytes) -> bytes:
    text = data.decode(errors="replace")
    other = [
        b"",
        b"\n",
        b"# x\n",
        b"[]",
        b"5",
        b"x",
        b"~",
        b"- SEED: 5\n",
        b"\0",
        b"---\n" * 3,
        b"!!x " + data,
        data[::-1],
    ]
    other += [
        text.encode("utf-16"),
        text.encode("latin-1", "replace"),
        b"\x80\x04\x95" + data[:50],
        b"PK\x03\x04" + data,
    ]
    other += [data.replace(b":", b"="), data.replace(b": ", b":"), data.replace(b" ", b"\t"), b"{" + data + b"}"]
    return rng.choice(other)


_MUTATIONS = {
    change.__name__.strip("_"): change
    for change in (_value, _key, _twice, _base, _deep, _tail, _cut, _insert, _indent, _move, _whole)
}

# --------------------------------------------------------------------------------------------------------- what happens


def outcome(case: Case, folder: Path) -> str:
    """ "right", or what is wrong: "silent: ...", "unnamed: ...", "traceback: ..."."""
    for name, data in case.files.items():
        (folder / name).write_bytes(data)
    try:
        cfg = read_cfg(str(folder / NAME))
        check_ranges(cfg, related=False)
    except (ValueError, KeyError, OSError, UserError) as error:
        if isinstance(error, UnicodeError):
            return f"traceback: {type(error).__name__}: {error}"
        if case.same is not None:
            return f"refused: {error}"
        return "right" if _names(str(error), folder) else f"unnamed: {type(error).__name__}: {error}"
    except Exception as error:
        last = [line for line in traceback.format_exc().splitlines() if line.strip().startswith("File")][-1].strip()
        return f"traceback: {type(error).__name__}: {str(error)[:200]} ({last})"
    try:
        meant = case.same if case.same is not None else meaning(case.files, NAME)
    except (Unclear, yaml.YAMLError, UnicodeError) as error:
        return f"silent: read, but {type(error).__name__}: {error}"
    read = flatten(cfg)
    wanted = {**default_values(), **meant}
    for key, value in wanted.items():
        if not same(read[key], value):
            return f"silent: {key} is read as {read[key]!r}, meant is {value!r}"
    return _derived(cfg)


def _derived(cfg: Any) -> str:
    try:
        derive(cfg)
    except (ValueError, KeyError, FileNotFoundError, UserError) as error:
        named = "Data set" in str(error) or any(key.rpartition(".")[2] in str(error) for key in default_values())
        return "right" if named else f"unnamed: {type(error).__name__}: {error}"
    except Exception as error:
        last = [line for line in traceback.format_exc().splitlines() if line.strip().startswith("File")][-1].strip()
        return f"traceback: {type(error).__name__}: {str(error)[:200]} ({last})"
    return "right"


def _names(text: str, folder: Path) -> bool:
    """The file, and a line of it or a key."""
    if not any(str(folder / name) in text for name in (NAME, "base.yaml")):
        return any(key in text for key in default_values())  # what is refused once all is merged
    keys = (key for known in default_values() for key in known.split("."))
    return (
        "line " in text
        or any(word in text for word in ("_BASE_", "UTF-8", "holds no keys"))
        or any(key in text for key in keys)
    )


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    counts: Counter[tuple[str, str]] = Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name, until_stopped():
        for seed in range(first, first + count):
            case = draw(seed)
            folder = Path(name, str(seed))
            folder.mkdir()
            with in_time(SECONDS):
                said = outcome(case, folder)
            counts[case.kind.partition("+")[0], said.partition(":")[0]] += 1
            if said != "right":
                print(seed, case.kind, said[:400], flush=True)
    print(f"{sum(counts.values())} files in {time.monotonic() - began:.0f} s")
    for kind in sorted({kind for kind, _ in counts}):
        print(f"  {kind}: { ({said: n for (of, said), n in sorted(counts.items()) if of == kind}) }")


if __name__ == "__main__":
    main()
