"""Decides which Detectron2 runs: an installed one, or the compact engine that dyn_d2 carries.

All other code imports plain ``detectron2.*``; nothing but this module knows that there are two engines.
The environment variable ``DYN_D2_ENGINE`` forces the choice: ``auto`` (default), ``detectron2`` or ``embedded``.
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path

ENGINE_VARIABLE = "DYN_D2_ENGINE"
EMBEDDED_PATH = Path(__file__).resolve().parent / "embedded"
TESTED_VERSIONS = ("0.6",)


class EngineError(ImportError):
    """The engine that was asked for cannot be used; the message names the remedy."""


def _imported_engine() -> str | None:
    module = sys.modules.get("detectron2")
    return _engine_of(module.__file__) if module is not None else None


def _engine_of(file: str | None) -> str:
    return "embedded" if file and Path(file).resolve().is_relative_to(EMBEDDED_PATH) else "detectron2"


def _installed() -> bool:
    """Whether a Detectron2 other than the embedded one can be found."""
    spec = importlib.util.find_spec("detectron2")
    return spec is not None and _engine_of(spec.origin) == "detectron2"


def _check_installed() -> None:
    """Import the installed Detectron2 once, so that a broken build is reported here and not deep inside a model.

    Raises:
        EngineError: its compiled part does not load (usually built against another torch).
    """
    try:
        importlib.import_module("detectron2._C")
    except ImportError as error:
        where = importlib.util.find_spec("detectron2").origin
        raise EngineError(
            f"Detectron2 is installed ({where}) but its compiled part does not load: {error}. "
            f"Rebuild it against the torch of this environment, or set {ENGINE_VARIABLE}=embedded."
        ) from error


def choose_engine() -> str:
    """Make ``import detectron2`` find the chosen engine and return its name, "detectron2" or "embedded".

    Raises:
        EngineError: unknown value of ``DYN_D2_ENGINE``; the installed Detectron2 is missing or broken although it is
            wanted; another engine than the wanted one has been imported already.
    """
    wanted = os.environ.get(ENGINE_VARIABLE, "auto")
    if wanted not in ("auto", "detectron2", "embedded"):
        raise EngineError(f"{ENGINE_VARIABLE}={wanted!r} is unknown: use auto, detectron2 or embedded.")
    present = _imported_engine()
    if present is not None and wanted in ("auto", present):
        return present
    if present is not None:
        raise EngineError(
            f"{ENGINE_VARIABLE}={wanted}, but the engine '{present}' was imported before dyn_d2: import dyn_d2 first."
        )
    if wanted == "embedded" or (wanted == "auto" and not _installed()):
        if str(EMBEDDED_PATH) not in sys.path:
            # Ahead of the installed one only where the user insists on the embedded engine.
            sys.path.insert(0 if wanted == "embedded" else len(sys.path), str(EMBEDDED_PATH))
        importlib.invalidate_caches()
        return "embedded"
    if not _installed():
        raise EngineError(
            f"{ENGINE_VARIABLE}=detectron2, but no Detectron2 is installed: install it as its INSTALL.md says, "
            f"or unset {ENGINE_VARIABLE} to use the embedded engine."
        )
    _check_installed()
    return "detectron2"


def describe_engine() -> str:
    """One line for the log: which engine runs, its version and place."""
    module = importlib.import_module("detectron2")
    name = _engine_of(module.__file__)
    line = f"engine: {name} ({module.__version__}, {Path(module.__file__).parent})"
    if name == "detectron2" and not module.__version__.startswith(TESTED_VERSIONS):
        line += f"; dyn_d2 was tested with Detectron2 {', '.join(TESTED_VERSIONS)}"
    return line
