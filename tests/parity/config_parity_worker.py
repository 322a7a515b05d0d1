"""Writes the default keys, and the published configs with the addresses of their weights, of one backend as json.

usage: config_parity_worker.py OUT.json [NAME ...]   without names: all that the embedded Detectron2 has
"""

import json
import os
import sys
import types

import dyn_d2  # noqa: F401  isort: skip  chooses the backend

import detectron2
from detectron2.config import get_cfg

try:
    import pkg_resources  # noqa: F401
except ImportError:  # Detectron2's model zoo asks it for one path; setuptools no longer has it
    stand_in = types.ModuleType("pkg_resources")
    stand_in.resource_filename = lambda package, name: os.path.join(
        os.path.dirname(detectron2.__file__), package.rpartition(".")[2], name
    )
    sys.modules["pkg_resources"] = stand_in

from detectron2 import model_zoo


def flat(node: dict, prefix: str = "") -> dict[str, str]:
    """Key -> value as text that shows its type, also inside of tuples and lists."""
    result = {}
    for key, value in node.items():
        result.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: repr(value)})
    return result


def address(name: str) -> str | None:
    try:
        return model_zoo.get_checkpoint_url(f"{name}.yaml")
    except RuntimeError:
        return None


def main(out: str, names: list[str]) -> None:
    if not names:
        from detectron2.model_zoo.published import names as published

        names = published()
    result = {"defaults": flat(get_cfg())}
    for name in names:
        result[name] = {"keys": flat(model_zoo.get_config(f"{name}.yaml")), "weights": address(name)}
    with open(out, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
