"""Reading a config: defaults, a yaml file, and KEY VALUE pairs on top."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml

from detectron2.config import CfgNode, get_cfg

from . import add_dyn_d2_config
from .names import merge_config


def read_cfg(config_file: str = "", opts: Iterable[str] = ()) -> CfgNode:
    """Defaults, then the yaml file or the config of dyn_d2 that is named, then ``KEY VALUE ...`` pairs.

    Raises:
        KeyError: unknown key, with the nearest known one.
        FileNotFoundError: no such yaml file, and no config of that name.
    """
    cfg = get_cfg()
    add_dyn_d2_config(cfg)
    if config_file:
        try:
            _merge(cfg, lambda: merge_config(cfg, config_file))
        except yaml.YAMLError as error:
            raise ValueError(f"--config-file {config_file} is no valid yaml: {error}") from error
    _merge(cfg, lambda: cfg.merge_from_list(list(opts)))
    return cfg


def _merge(cfg: CfgNode, merge: Callable[[], None]) -> None:
    try:
        merge()
    except (KeyError, AssertionError) as error:
        text = str(error).strip("'\"")
        if "Non-existent" not in text or "nearest" in text:  # a Detectron2 that names the nearest key itself
            raise
        unknown = text.rpartition(" ")[2]
        near = difflib.get_close_matches(unknown, list(flatten(cfg)), 1)
        hint = f", did you mean {near[0]}?" if near else "."
        raise KeyError(f"unknown config key {unknown}{hint}") from error


def flatten(cfg: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All keys of ``cfg`` as one dict of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in cfg.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return flat


def read_yaml(path: str) -> dict[str, Any]:
    """A yaml file of plain values."""
    with open(path, encoding="utf-8") as file:
        return yaml.safe_load(file)
