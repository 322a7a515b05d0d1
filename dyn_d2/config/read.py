"""Reading a config: defaults, a yaml file, and KEY VALUE pairs on top."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import yaml

from dyn_d2.data.imports import import_modules, leave_out

from detectron2.config import CfgNode, get_cfg

from . import add_dyn_d2_config
from .names import merge_config
from .ranges import text_lists
from .rules import names
from .yaml_files import can_be_decoded


def read_cfg(config_file: str = "", opts: Iterable[str] = ()) -> CfgNode:
    """Defaults, then the yaml file or the config of dyn_d2 that is named, then ``KEY VALUE ...`` pairs.

    Raises:
        KeyError: unknown key, with the nearest known one.
        FileNotFoundError: no such yaml file, and no config of that name.
        ValueError: the file is no yaml of keys; ``opts`` are no pairs; a value is of another type than its key.
        UserError: a module of DATASETS.IMPORT cannot be imported.
    """
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    if config_file:
        _merge(cfg, lambda: merge_config(cfg, config_file, text_lists()), f"{config_file}: ")
    merge_opts(cfg, opts)
    if names().fits(cfg.DATASETS.IMPORT):  # anything else is refused where all values are looked at
        import_modules(cfg.DATASETS.IMPORT, config_file)
    return cfg


def merge_into_carried(cfg: CfgNode, opts: Iterable[str]) -> None:
    """``merge_opts`` on top of the config of a checkpoint: modules that ``opts`` name are imported, its own are not.

    Raises:
        UserError: a module cannot be imported; other errors as in ``read_cfg``.
    """
    pairs, carried = list(opts), cfg.DATASETS.IMPORT
    merge_opts(cfg, pairs)
    if "DATASETS.IMPORT" not in pairs[::2]:
        leave_out(carried if names().fits(carried) else ())
    elif names().fits(cfg.DATASETS.IMPORT):
        import_modules(cfg.DATASETS.IMPORT)


def merge_opts(cfg: CfgNode, opts: Iterable[str]) -> None:
    """``KEY VALUE ...`` on top of ``cfg``; errors as in ``read_cfg``."""
    pairs = list(opts)
    check_pairs(pairs, cfg)
    _merge(cfg, lambda: cfg.merge_from_list(_with_points(pairs, cfg)))


def _with_points(words: Sequence[Any], known: Mapping[str, Any]) -> list[Any]:
    """The same pairs, whole numbers with a point where the key has one: MODEL.GATED.WIDEN 3 means 3.0."""
    values, found = flatten(known), list(words)
    for place in range(0, len(found) - 1, 2):
        value = str(found[place + 1])
        if isinstance(values.get(found[place]), float) and re.fullmatch(r"[+-]?[0-9]{1,300}", value, re.ASCII):
            found[place + 1] = f"{value}.0"
    return found


def check_pairs(words: Sequence[Any], known: Mapping[str, Any]) -> None:
    """What stands on a command line after its options is ``KEY VALUE KEY VALUE ...``.

    Args:
        known: the tree of keys.

    Raises:
        ValueError: a word that is no key stands where one should, a key has no value, or it reads KEY=VALUE.
    """
    keys = set(flatten(known))
    position = 0
    while position < len(words):
        key = words[position]
        name, equals, value = str(key).partition("=")
        if equals and (name in keys or name.replace(".", "").replace("_", "").isupper()):
            raise ValueError(f"{key}: keys and values are words of their own; write {name} {value or 'VALUE'}.")
        before = f" after {words[position - 2]} {words[position - 1]}" if position else ""
        if str(key).startswith("--"):
            raise ValueError(f"{key}{before}: flags come first, before all KEY VALUE pairs.")
        if position + 1 == len(words):
            if key in keys:
                raise ValueError(f"{key} has no value: options come as KEY VALUE pairs, but their number is odd.")
            raise ValueError(
                f"{key!r}{before} has no partner: options come as KEY VALUE pairs, but their number is odd. A value "
                "with spaces, such as a list, has to stand in quotes."
            )
        following = words[position + 1]
        if isinstance(following, str) and not can_be_decoded(following):
            raise ValueError(f"{key}: its value is too deep or long to be read.")
        if key in keys and isinstance(following, str) and following in keys:
            raise ValueError(f"{key} has no value: {following}, another key, follows it.")
        if key not in keys and len(words) % 2:
            raise ValueError(
                f"{key!r}{before} is no key: options come as KEY VALUE pairs, but their number is odd. A value with "
                "spaces, such as a list, has to stand in quotes."
            )
        position += 2


_MISMATCH = re.compile(r"Type mismatch .* with values \((.*) vs\. (.*)\) for config key: (\S+)", re.DOTALL)


def _merge(cfg: CfgNode, merge: Callable[[], None], where: str = "") -> None:
    try:
        merge()
    except ValueError as error:
        found = _MISMATCH.search(str(error))
        if not found:
            raise
        key = found[3]
        raise ValueError(f"{where}{key} is {found[2][:200]}: {_advice(cfg, key)}.") from error
    except (KeyError, AssertionError) as error:
        text = str(error).strip("'\"")
        if "Non-existent" not in text or "nearest" in text:  # a Detectron2 that names the nearest key itself
            raise
        unknown = text.rpartition(" ")[2]
        near = difflib.get_close_matches(unknown, list(flatten(cfg)), 1, 0.0)
        hint = f"; the nearest known key is {near[0]}." if near else "."
        raise KeyError(f"{where}unknown config key {unknown}{hint}") from error


def _advice(cfg: CfgNode, key: str) -> str:
    default: Any = cfg
    for part in key.split("."):
        default = default[part]
    if isinstance(default, Mapping):
        return f"it is a section with the keys {', '.join(list(default)[:8])}"
    if isinstance(default, bool):
        return "use True or False"
    if isinstance(default, int):
        return f"use a whole number, such as {default}"
    if isinstance(default, float):
        return f"use a number with a point, such as {float(default)}"
    if isinstance(default, str):
        return "use text; where it reads as a number, in quotes twice: '\"7\"'"
    return f"use a list, such as {list(default)}" if isinstance(default, list | tuple) else f"use {default!r} or so"


def flatten(cfg: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All keys of ``cfg`` as one dict of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in cfg.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return flat


def as_yaml(cfg: Any) -> Any:
    """What a yaml file of ``cfg`` reads as, without writing one: plain dicts, and lists for tuples."""
    if isinstance(cfg, Mapping):
        return {key: as_yaml(value) for key, value in cfg.items()}
    return [as_yaml(value) for value in cfg] if isinstance(cfg, list | tuple) else cfg


def read_yaml(path: str) -> dict[str, Any]:
    """The yaml file of a config that a run has written.

    Raises:
        ValueError: it is none any more; names the file.
    """
    try:
        with open(path, encoding="utf-8") as file:
            value = yaml.safe_load(file)
        if not isinstance(value, dict):
            raise ValueError("it holds no keys")
        flatten(value)
    except (yaml.YAMLError, RecursionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path} is no config that a run has written ({reason}): bring it back, or remove it, since checkpoints "
            "carry the config too."
        ) from error
    return value
