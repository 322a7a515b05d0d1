"""Configs by name: ``METHOD/DATASET.yaml`` is found in any folder, since the package brings its configs along."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from detectron2.config import CfgNode

from .yaml_files import check_config_file

_PACKAGE = Path(__file__).resolve().parents[1]
_PRIVATE = "_BASE_"  # the folder, or the file of a method, of what configs build on


def configs_folder() -> Path:
    """The folder of the configs that come with dyn_d2: in the package, or beside it in a checkout."""
    packaged = _PACKAGE / "configs"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "configs"


def config_names() -> list[str]:
    """``METHOD/DATASET.yaml`` of each config that comes with dyn_d2, those left out that others build on."""
    folder = configs_folder()
    names = (path.relative_to(folder) for path in folder.rglob("*.yaml"))
    return sorted(name.as_posix() for name in names if not name.parts[0].startswith(_PRIVATE) and name.stem != _PRIVATE)


def find_config(name: str) -> str:
    """The path of a config.

    Args:
        name: a path that exists wins; else the name of a config that comes with dyn_d2. ``.yaml`` may be left out, and
            ``configs/`` may stand in front.

    Raises:
        FileNotFoundError: neither; the message names the nearest configs.
    """
    if os.path.isfile(name):
        return name
    wanted = Path(name).as_posix().removeprefix("configs/")
    known = config_names()
    for full in (wanted, f"{wanted}.yaml"):
        if full in known:
            return str(configs_folder() / full)
    near = difflib.get_close_matches(wanted.removesuffix(".yaml") + ".yaml", known, 3, 0.5)
    advice = f"; did you mean {' or '.join(near)}?" if near else "; dyn-d2 configs lists those that come with dyn_d2."
    raise FileNotFoundError(f"--config-file {name} does not exist, and no config of dyn_d2 has that name{advice}")


def merge_config(cfg: CfgNode, name: str, text_lists: Iterable[str] = ()) -> None:
    """``cfg.merge_from_file``, by name. A ``_BASE_`` that does not lie beside its file may be a name too.

    Args:
        text_lists: keys whose lists hold nothing but text.

    Raises:
        FileNotFoundError: from ``find_config``, or a ``_BASE_`` is nowhere.
        ValueError: from ``check_config_file``; that and KeyError from ``merge_from_file``.
    """
    path = find_config(name)
    check_config_file(path, cfg, set(text_lists), _base)
    try:
        cfg.merge_from_file(path, allow_unsafe=False)
    except FileNotFoundError:  # of a base, while nothing is merged yet
        cfg.merge_from_other_cfg(CfgNode(_WithNamedBases.load_yaml_with_base(path)))


class _WithNamedBases(CfgNode):
    @classmethod
    def _open_cfg(cls, filename: str):
        return super()._open_cfg(_base(filename))


def _base(path: str) -> str:
    """``path`` where there is such a file; else the config of dyn_d2 that its last parts name."""
    if os.path.isfile(path):
        return path
    parts = Path(os.path.normpath(path)).parts
    for begin in range(max(0, len(parts) - 3), len(parts)):
        found = str(configs_folder().joinpath(*parts[begin:]))
        if os.path.isfile(found):  # that of Path raises where a name is too long
            return found
    raise FileNotFoundError(f"_BASE_ {path[:500]} does not exist, and no config of dyn_d2 has that name.")
