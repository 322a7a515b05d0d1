"""DATASETS.IMPORT: a user's own modules, such as ones that register data sets."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from dyn_d2.utils.errors import UserError

_left_out: dict[str, None] = {}  # modules of checkpoints that were not imported, in the order of their first mention


def leave_out(names: Iterable[str]) -> None:
    """Note modules that only a checkpoint names. They are not imported: loading a file runs no code that it chooses."""
    _left_out.update(dict.fromkeys(names))


def left_out_hint() -> str:
    """What to say where something is not registered: the modules of ``leave_out``, and how to import them; or ""."""
    if not _left_out:
        return ""
    names = list(_left_out)
    return (
        f" The checkpoint was trained with DATASETS.IMPORT {names}, which loading it does not import: put "
        f'DATASETS.IMPORT "{names}" among the keys of the command line.'
    )


def import_modules(names: Iterable[str], beside: str = "") -> None:
    """Import modules, each once in a process.

    Args:
        names: as in ``import``, or paths of .py files; relative ones start in the working directory, or else beside
            the config.
        beside: the yaml file that names them.

    Raises:
        UserError: there is no such module, or what it runs fails; says where.
    """
    for name in names:
        _left_out.pop(name, None)
        try:
            _import_file(name, beside) if name.endswith(".py") else _import_name(name, beside)
        except UserError:
            raise
        except Exception as error:  # whatever somebody's module raises
            raise UserError(f"DATASETS.IMPORT: {name} cannot be imported: {type(error).__name__}: {error}") from error


def _import_name(name: str, beside: str) -> None:
    folders = [str(Path.cwd()), *([str(Path(beside).resolve().parent)] if beside else [])]
    before = list(sys.path)
    sys.path += [folder for folder in folders if folder not in sys.path]
    try:
        importlib.import_module(name)
    finally:
        sys.path[:] = before


def _import_file(name: str, beside: str) -> None:
    places = [Path(name).expanduser(), *([Path(beside).resolve().parent / name] if beside else [])]
    path = next((place.resolve() for place in places if place.is_file()), None)
    if path is None:
        raise UserError(f"DATASETS.IMPORT: there is no file {' or '.join(map(str, places))} (from {Path.cwd()}).")
    module_name = f"dyn_d2_imported_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if module_name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # of a .py file there is always one
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
