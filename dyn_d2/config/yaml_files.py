"""A yaml file of config keys is looked at before it is merged: what a reader of yaml takes for something else than was
meant, or takes without a word, is refused with file and line."""

import ast
import os
import re
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.resolver import Resolver

_CORE = "tag:yaml.org,2002:"
_PLAIN_TAGS = {_CORE + name for name in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge")}
_TEXT, _MERGE, _BASE = _CORE + "str", _CORE + "merge", "_BASE_"
_KINDS = {"int": "a number", "float": "a number", "bool": "true or false", "null": "nothing", "timestamp": "a date"}
MAX_DEPTH = 50  # of lists and mappings in each other; the keys of a config have 6 levels at most
MAX_NODES = 100_000  # of a file whose anchors are written out
LONGEST_NUMBER = 1000  # digits; Python reads 4300 at most
_ODD_NUMBER = re.compile(r"[-+]?(0[0-7_]+|\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?)")  # to base 8, or to base 60 as a time

FindBase = Callable[[str], str]
"""The path of a ``_BASE_``, which raises FileNotFoundError where it is nowhere."""


def check_config_file(
    path: str, defaults: Mapping[str, Any], text_lists: Collection[str] = (), find_base: FindBase = str
) -> None:
    """A yaml file, and those that it is based on, hold what a config is made of.

    Args:
        path: of the file.
        defaults: the tree of known keys; keys that it lacks are left to the merge.
        text_lists: dotted names of keys whose lists hold nothing but text, such as class names.
        find_base: see there.

    Raises:
        ValueError: no valid yaml, or a key that is given twice or is no text, an unknown tag, lists or anchors without
            end, names that yaml reads as something else, a file that is based on itself. Names file and line.
        FileNotFoundError: from ``find_base``.
    """
    _check_file(path, _Known(defaults, text_lists), find_base, [])


class _Known:
    def __init__(self, defaults: Mapping[str, Any], text_lists: Collection[str]) -> None:
        self.defaults, self.text_lists = defaults, text_lists

    def default(self, key: tuple[str, ...]) -> Any:
        """None of an unknown key."""
        node: Any = self.defaults
        for part in key:
            node = node.get(part) if isinstance(node, Mapping) else None
        return node


def _check_file(path: str, known: _Known, find_base: FindBase, chain: list[str]) -> None:
    here = os.path.realpath(path)
    if here in chain:
        circle = " is based on ".join([*chain[chain.index(here) :], here])
        raise ValueError(f"{circle}: a config cannot be its own _BASE_.")
    root = _compose(path)
    for node in _check(root, path, known):
        base = os.path.expanduser(node.value) if node.value.startswith("~") else node.value
        if base.startswith(("http://", "https://")):
            continue
        if not os.path.isabs(base):
            base = os.path.normpath(os.path.join(os.path.dirname(path), base))
        try:
            found = find_base(base)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path}, line {_line(node)}: {error}") from error
        _check_file(found, known, find_base, [*chain, here])


def _compose(path: str) -> yaml.MappingNode:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"--config-file {path} is no valid yaml: it is no text in UTF-8 ({error}).") from error
    try:
        depth, events = 0, []
        for event in yaml.parse(text, yaml.SafeLoader):  # does not go down by calling itself, as all that follows does
            events.append(event)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"{path}, line {_line(event)}: more than {MAX_DEPTH} lists or sections in each other.")
        root = _Composer(events).get_single_node()
    except yaml.YAMLError as error:
        raise ValueError(f"--config-file {path} is no valid yaml: {_reason(error, text)}") from error
    if not isinstance(root, yaml.MappingNode) or not root.value:
        raise ValueError(f"Config file '{path}' holds no keys.")
    return root


class _Composer(Composer, Resolver):
    """Makes nodes of events that were parsed before: the scanner of yaml takes most of the time of reading a config."""

    def __init__(self, events: list[yaml.Event]) -> None:
        Composer.__init__(self)
        Resolver.__init__(self)
        self._events = deque(events)

    def check_event(self, *kinds: type[yaml.Event]) -> bool:
        return bool(self._events) and (not kinds or isinstance(self._events[0], kinds))

    def peek_event(self) -> yaml.Event:
        return self._events[0]

    def get_event(self) -> yaml.Event:
        return self._events.popleft()


def _reason(error: yaml.YAMLError, text: str = "") -> str:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"line {line}: the character {_shown_character(error.character)} is not allowed in a text."
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    place = error.problem_mark or error.context_mark
    said = ", ".join(part for part in (error.context, error.problem) if part)
    return f"line {place.line + 1}: {said}." if place else f"{said}."


def _shown_character(character: str | int) -> str:
    return f"U+{character if isinstance(character, int) else ord(character):04X}"


def _line(part: yaml.Node | yaml.Event) -> int:
    return part.start_mark.line + 1


def _check(root: yaml.MappingNode, path: str, known: _Known) -> list[yaml.ScalarNode]:
    """What is wrong with one file is raised; returns its ``_BASE_``."""
    _require_finite(root, path)
    bases: list[yaml.ScalarNode] = []
    for key, node in root.value:
        if key.value == _BASE:
            parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
            if not parts or not all(isinstance(part, yaml.ScalarNode) and part.tag == _TEXT for part in parts):
                raise ValueError(f"{path}, line {_line(node)}: _BASE_ has to be the path of a yaml, or a list of them.")
            bases = parts
    _check_section(root, path, known, ())
    try:
        yaml.SafeLoader("").construct_document(root)
    except yaml.YAMLError as error:
        raise ValueError(f"--config-file {path} is no valid yaml: {_reason(error)}") from error
    except (ValueError, OverflowError) as error:
        raise ValueError(f"--config-file {path} is no valid yaml: {error}.") from error
    return bases


def _require_finite(root: yaml.Node, path: str) -> None:
    """No anchor holds itself, and what they stand for is not too much."""
    sizes: dict[int, int] = {}
    above: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in above:
            raise ValueError(f"{path}, line {_line(node)}: an anchor (&name) that holds itself (*name) has no end.")
        if id(node) not in sizes:
            above.add(id(node))
            sizes[id(node)] = 1 + sum(size(part) for part in _parts(node))
            above.remove(id(node))
            if sizes[id(node)] > MAX_NODES:
                raise ValueError(
                    f"{path}, line {_line(node)}: more than {MAX_NODES} values once its anchors are written out."
                )
        return sizes[id(node)]

    size(root)


def _parts(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value


def _check_section(node: yaml.MappingNode, path: str, known: _Known, above: tuple[str, ...]) -> set[str]:
    """Returns the names of the sections in it."""
    seen: dict[str, int] = {}
    sections: set[str] = set()
    merged: set[str] = set()
    for key, value in node.value:
        line = _line(key)
        if key.tag == _MERGE:
            name = "<<"
        elif not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"{path}, line {line}: a list or section cannot be a key; a line reads KEY: value.")
        elif key.tag != _TEXT:
            what = _KINDS.get(key.tag.removeprefix(_CORE), f"of the type {key.tag}")
            raise ValueError(f"{path}, line {line}: the key {key.value!r} is read as {what}; keys are names.")
        else:
            name = key.value
        dotted = ".".join((*above, name))
        if name in seen:
            raise ValueError(
                f"{path}, line {line}: {dotted} is given twice, first in line {seen[name]}: the first would be dropped "
                "without a word. Put all of it in one place."
            )
        seen[name] = line
        if name == "<<":
            merged = _check_merged(value, path, known, above)
        else:
            _check_value(value, path, known, (*above, name))
            sections |= {name} if isinstance(value, yaml.MappingNode) else set()
    for name in sorted(sections & merged):
        raise ValueError(
            f"{path}, line {seen[name]}: {'.'.join((*above, name))} stands here and in what << brings: that one would "
            "be dropped as a whole without a word. Write <<: into the section itself."
        )
    return sections | merged


def _check_merged(node: yaml.Node, path: str, known: _Known, above: tuple[str, ...]) -> set[str]:
    """What ``<<`` brings is a section, or a list of them, without ``_BASE_``; returns the sections in it."""
    found: set[str] = set()
    names: set[str] = set()
    for part in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        if not isinstance(part, yaml.MappingNode):
            raise ValueError(
                f"{path}, line {_line(part)}: << takes a section, such as *NAME of an &NAME, or a list of them."
            )
        if any(key.value == _BASE for key, _ in part.value):
            raise ValueError(
                f"{path}, line {_line(part)}: _BASE_ is looked for at the top of a file, not in what << brings."
            )
        found |= _check_section(part, path, known, above)
        own = {key.value for key, _ in part.value}
        if own & names:
            raise ValueError(
                f"{path}, line {_line(part)}: << brings {sorted(own & names)[0]} twice, and readers of yaml differ in "
                "which one they take."
            )
        names |= own
    return found


def _check_value(node: yaml.Node, path: str, known: _Known, key: tuple[str, ...]) -> None:
    dotted, default = ".".join(key), known.default(key)
    if node.tag not in _PLAIN_TAGS:
        raise ValueError(f"{path}, line {_line(node)}: {dotted} has the tag {node.tag}; write the plain value.")
    if isinstance(default, Mapping) and not isinstance(node, yaml.MappingNode):
        shown = "a list" if isinstance(node, yaml.SequenceNode) else node.value or "nothing"
        raise ValueError(f"{path}, line {_line(node)}: {dotted} is a section of keys, not {shown}.")
    if isinstance(node, yaml.MappingNode):
        if default is not None and not isinstance(default, Mapping):
            raise ValueError(
                f"{path}, line {_line(node)}: {dotted} is no section, but has a value, such as {default!r}."
            )
        _check_section(node, path, known, key)
    elif isinstance(node, yaml.SequenceNode):
        texts = dotted in known.text_lists or bool(default) and _all_texts(default)
        _check_list(node, path, dotted, texts)
    elif isinstance(default, str) or node.tag == _CORE + "timestamp":
        _require_text(node, path, dotted, decoded=True)
    else:
        _require_plain(node, path, dotted)
    if isinstance(node, yaml.ScalarNode) and not _can_be_read(node):
        raise ValueError(f"{path}, line {_line(node)}: {dotted} is too deep or long to be read as a value.")


def _check_list(node: yaml.SequenceNode, path: str, dotted: str, texts: bool) -> None:
    for part in node.value:
        if part.tag not in _PLAIN_TAGS:
            raise ValueError(f"{path}, line {_line(part)}: {dotted} has the tag {part.tag}; write the plain value.")
        if isinstance(part, yaml.SequenceNode):
            _check_list(part, path, dotted, texts)
        elif isinstance(part, yaml.ScalarNode) and (texts or part.tag == _CORE + "timestamp"):
            _require_text(part, path, dotted, decoded=False)
        elif isinstance(part, yaml.ScalarNode):
            _require_plain(part, path, dotted)
            if not _can_be_read(part):
                raise ValueError(f"{path}, line {_line(part)}: {dotted} holds a value that is too long to be read.")


def _require_plain(node: yaml.ScalarNode, path: str, dotted: str) -> None:
    """A number is to the base that it seems to be; no comment stands in a value, where Python would drop it."""
    if node.style is None and node.tag != _TEXT and _ODD_NUMBER.fullmatch(node.value):
        what = "a time, in its smallest unit" if ":" in node.value else "a number to base 8"
        raise ValueError(
            f"{path}, line {_line(node)}: {dotted}: {node.value} is read as {what}; write the plain number."
        )
    if "#" in node.value and _is_literal(node.value):
        raise ValueError(
            f"{path}, line {_line(node)}: {dotted}: {node.value} has a # in it; a comment needs a space before."
        )


def _all_texts(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, str) for value in values)


def _require_text(node: yaml.ScalarNode, path: str, dotted: str, decoded: bool) -> None:
    """``decoded``: the config reads quoted text once more as a literal of Python."""
    if node.tag == _TEXT:
        return
    quoted = f'"{node.value}"'
    if decoded and _is_literal(node.value):
        quoted = f"'{quoted}'"
    what = _KINDS.get(node.tag.removeprefix(_CORE), node.tag)
    shown, remedy = node.value or "empty", f"quote it: {quoted}"
    if decoded and what == _KINDS["null"]:
        remedy = 'write "" for no value' + (f", {quoted} for that text" if node.value else "")
    raise ValueError(f"{path}, line {_line(node)}: {dotted}: {shown} is read as {what}; {remedy}.")


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _can_be_read(node: yaml.ScalarNode) -> bool:
    return len(node.value) <= LONGEST_NUMBER if node.tag == _CORE + "int" else can_be_decoded(node.value)


def can_be_decoded(text: str) -> bool:
    """Whether Python, which the config asks for the value of a text, comes to an end with it."""
    try:
        ast.literal_eval(text)
    except (MemoryError, RecursionError):
        return False
    except (ValueError, SyntaxError):
        pass
    return True
