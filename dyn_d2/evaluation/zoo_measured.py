"""Rows of the table of models whose numbers stand in json files that are kept: a yaml file's section "measured".

    measured:
      - file: skipnet_cifar10_slim.json        # beside the yaml file
        metric: classification top1_accuracy   # task and name
        data: "CIFAR-10 as JPEG, 10,000 test images"
        models:
          skipnet38_slim:
            command: dyn-d2 slim --config-file SkipNet/cifar_slim.yaml ...
            at: [seeds, "*", gated]             # a step a level; with * or ? all keys that match: the seeds of a model
            iterations: 3500

Optional of a model: "iterations", "MB" of its checkpoint, "gflops" and "ms" (each a number, or the way to it, as in
"at"), "scale" (a factor of the values: 100 where the file has shares of 1), and its own "data".
"""

import json
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dyn_d2.utils.errors import UserError

from .zoo_table import Row

_OF_GROUP = {"file", "metric", "data", "models"}
_OF_MODEL = {"command", "at", "iterations", "MB", "gflops", "ms", "scale", "data"}


def rows_measured(groups: Sequence[Any], folder: str | Path) -> list[Row]:
    """
    Args:
        groups: as the section has them.
        folder: where their files are.

    Raises:
        UserError: a group or model lacks a field or has an unknown one, a file cannot be read, or nothing is where
            "at" leads; names it.
    """
    rows = []
    for group in groups:
        _check(group, _OF_GROUP, _OF_GROUP, "a group of 'measured'")
        path = Path(folder) / str(group["file"])
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path}, which 'measured' names, cannot be read: {error}") from error
        for name, model in group["models"].items():
            _check(model, _OF_MODEL, {"command", "at"}, f"{name} of 'measured'")
            rows.append(_row(str(name), model, group, content, path))
    return rows


def _check(entry: Any, known: set[str], needed: set[str], what: str) -> None:
    keys = set(entry) if isinstance(entry, Mapping) else set()
    if not needed <= keys <= known:
        raise UserError(f"{what} has the fields {sorted(keys)}: it needs {sorted(needed)} and knows {sorted(known)}.")


def _row(name: str, model: Mapping[str, Any], group: Mapping[str, Any], content: Any, path: Path) -> Row:
    def numbers(key: str) -> list[float]:
        given = model.get(key, [])
        return _numbers(content, given, f"{path}, {key} of {name}") if isinstance(given, list) else [float(given)]

    return Row(
        name,
        str(model.get("data", group["data"])),
        str(group["metric"]),
        int(model.get("iterations", 0)),
        str(model["command"]),
        megabytes=float(model.get("MB", math.nan)),
        values=[value * float(model.get("scale", 1)) for value in numbers("at")],
        gflops=numbers("gflops"),
        milliseconds=numbers("ms"),
    )


def _numbers(content: Any, way: Sequence[Any], what: str) -> list[float]:
    """All numbers at the end of ``way``; none where it is empty."""
    if not way:
        return []
    reached = [content]
    for step in map(str, way):
        reached = [value for node in reached for key, value in _entries(node) if fnmatchcase(key, step)]
    if not reached or not all(isinstance(value, int | float) for value in reached):
        raise UserError(f"{what}: there is no number at {' > '.join(map(str, way))}.")
    return [float(value) for value in reached]


def _entries(node: Any) -> list[tuple[str, Any]]:
    """(name, value) of what is below a level: keys of a mapping, numbers from 0 of a list."""
    if isinstance(node, Mapping):
        return [(str(key), value) for key, value in node.items()]
    return [(str(index), value) for index, value in enumerate(node)] if isinstance(node, list) else []
