"""What a yaml file of config keys means, told slowly and without the reader: see yaml_mutations.py."""

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dyn_d2.config.ranges import default_values


class Unclear(Exception):
    """Nobody can say what is meant: to take it for anything is wrong."""


def meaning(files: Mapping[str, bytes], name: str, chain: tuple[str, ...] = ()) -> dict[str, Any]:
    """Dotted key -> value of a file on top of those that it is based on."""
    if name in chain or name not in files:
        raise Unclear(f"_BASE_ {name}")
    documents = list(yaml.compose_all(files[name].decode("utf-8-sig" if name else "utf-8"), yaml.BaseLoader))
    if len(documents) != 1 or not isinstance(documents[0], yaml.MappingNode):
        raise Unclear("documents")
    own, bases = _section(documents[0], ()), []
    for key, node in documents[0].value:
        if key.value == "_BASE_":
            bases = [part.value for part in (node.value if isinstance(node, yaml.SequenceNode) else [node])]
    found: dict[str, Any] = {}
    for base in bases:
        found |= meaning(files, str(Path(base)), (*chain, name))
    found |= own
    for value in found.values() if not chain else ():
        if isinstance(value, Unclear):
            raise value
    return found


def _section(node: yaml.MappingNode, above: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    if len(set(names)) < len(node.value):
        raise Unclear("twice")
    merged: dict[str, Any] = {}
    for key, value in node.value:
        dotted = (*above, key.value)
        if key.value == "_BASE_" and not above:
            continue
        if key.value == "<<":
            for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                brought = _section(part, above) if isinstance(part, yaml.MappingNode) else None
                if brought is None or brought.keys() & merged.keys():
                    raise Unclear("<<")
                merged |= brought
        elif isinstance(value, yaml.MappingNode):
            if not any(known.startswith(".".join(dotted) + ".") for known in default_values()):
                raise Unclear("a section where there is none")
            found |= _section(value, dotted)
        else:
            found[".".join(dotted)] = _leaf_or_why_not(value, ".".join(dotted))
    if any(k.startswith(name) for k in merged for name in {f"{'.'.join(above)}.".lstrip(".") + n + "." for n in names}):
        raise Unclear("a section of its own, and a merged one")
    return merged | found


_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?")
_WORDS = {**dict.fromkeys(("true", "yes", "on"), True), **dict.fromkeys(("false", "no", "off"), False)}


def _leaf_or_why_not(node: yaml.Node, key: str) -> Any:
    """What is replaced by another file may mean nothing."""
    try:
        return _leaf(node, key)
    except Unclear as error:
        return error


def _leaf(node: yaml.Node, key: str) -> Any:
    defaults = default_values()
    if key not in defaults:
        raise Unclear(f"unknown {key}")
    default = defaults[key]
    if isinstance(node, yaml.SequenceNode):
        if not isinstance(default, list | tuple):
            raise Unclear("a list")
        return [_element(part, default) for part in node.value]
    if not isinstance(node, yaml.ScalarNode):
        raise Unclear("a section")
    return _typed(node.value, node.style is None, default)


def _element(node: yaml.Node, default: Any) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_element(part, default) for part in node.value]
    if not isinstance(node, yaml.ScalarNode):
        raise Unclear("a section in a list")
    if node.style is not None:
        return node.value
    if node.value.lower() in _WORDS:
        if any(isinstance(part, str) for part in default):
            raise Unclear("a flag among texts")
        return _WORDS[node.value.lower()]
    try:
        return _number(node.value)
    except ValueError:
        if node.value in ("", "~", "null", "Null", "NULL"):
            return None
        return node.value


def _number(text: str) -> int | float:
    if re.fullmatch(r"[-+]?0[xX][\da-fA-F_]+|[-+]?0b[01_]+", text):
        return int(text.replace("_", ""), 0)
    if re.fullmatch(r"[-+]?0[\d_]+", text) or re.fullmatch(r"[-+]?\d+(:[0-5]?\d)+(\.\d*)?", text):
        raise Unclear(f"the number {text}")
    if not _NUMBER.fullmatch(text):
        raise ValueError(text)
    plain = text.replace("_", "")
    return float(plain) if re.search(r"[.eE]", plain) else int(plain)


def _typed(text: str, bare: bool, default: Any) -> Any:
    if isinstance(default, str):
        try:
            literal = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text
        if not isinstance(literal, str):
            raise Unclear("no text")
        return literal
    if isinstance(default, bool):
        if text.lower() not in _WORDS or not bare and text not in ("True", "False"):
            raise Unclear("no flag")
        return _WORDS[text.lower()]
    if isinstance(default, int | float):
        try:
            value = _number(text)
        except ValueError as error:
            raise Unclear("no number") from error
        if isinstance(default, int) and not isinstance(value, int):
            raise Unclear("no whole number")
        return value
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        if default is None:
            return text
        raise Unclear("no list") from error


def same(read: Any, meant: Any) -> bool:
    if isinstance(read, list | tuple) and isinstance(meant, list | tuple):
        return len(read) == len(meant) and all(map(same, read, meant))
    return type(read) is type(meant) and read == meant or ({type(read), type(meant)} == {int, float} and read == meant)
