"""Decides which Detectron2 runs: the installed one, or the embedded one, a compact one that dyn_d2 carries.

All other code imports plain ``detectron2.*``; nothing but this module knows that there are two.
The environment variable ``DYN_D2_BACKEND`` forces the choice: ``auto`` (default), ``detectron2`` or ``embedded``;
``DYN_D2_ENGINE``, its name in version 0.1, is read where that is not set.
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path

BACKEND_VARIABLE = "DYN_D2_BACKEND"
OLD_VARIABLE = "DYN_D2_ENGINE"
EMBEDDED_PATH = Path(__file__).resolve().parent / "embedded"
TESTED_VERSIONS = ("0.6",)


class BackendError(ImportError):
    """The Detectron2 that was asked for cannot be used; the message names the remedy."""


def _imported_backend() -> str | None:
    module = sys.modules.get("detectron2")
    return _backend_of(module.__file__) if module is not None else None


def _backend_of(file: str | None) -> str:
    return "embedded" if file and Path(file).resolve().is_relative_to(EMBEDDED_PATH) else "detectron2"


def _installed() -> bool:
    """Whether a Detectron2 other than the embedded one can be found."""
    spec = importlib.util.find_spec("detectron2")
    return spec is not None and _backend_of(spec.origin) == "detectron2"


def _check_installed() -> None:
    """Import the installed Detectron2 once, so that a broken build is reported here and not deep inside a model.

    Raises:
        BackendError: its compiled part does not load (usually built against another torch).
    """
    try:
        importlib.import_module("detectron2._C")
    except ImportError as error:
        spec = importlib.util.find_spec("detectron2")
        where = None if spec is None else spec.origin
        raise BackendError(
            f"Detectron2 is installed ({where}) but its compiled part does not load: {error}. "
            f"Rebuild it against the torch of this environment, or set {BACKEND_VARIABLE}=embedded."
        ) from error


def choose_backend() -> str:
    """Make ``import detectron2`` find the chosen one and return its name, "detectron2" or "embedded".

    Raises:
        BackendError: unknown value of ``DYN_D2_BACKEND``; the installed Detectron2 is missing or broken although it is
            wanted; another one than the wanted has been imported already.
    """
    wanted = os.environ.get(BACKEND_VARIABLE) or os.environ.get(OLD_VARIABLE) or "auto"
    if wanted not in ("auto", "detectron2", "embedded"):
        raise BackendError(f"{BACKEND_VARIABLE}={wanted!r} is unknown: use auto, detectron2 or embedded.")
    present = _imported_backend()
    if present is not None and wanted in ("auto", present):
        return present
    if present is not None:
        raise BackendError(
            f"{BACKEND_VARIABLE}={wanted}, but '{present}' was imported before dyn_d2: import dyn_d2 first."
        )
    if wanted == "embedded" or (wanted == "auto" and not _installed()):
        if str(EMBEDDED_PATH) not in sys.path:
            # Ahead of the installed one only where the user insists on the embedded one.
            sys.path.insert(0 if wanted == "embedded" else len(sys.path), str(EMBEDDED_PATH))
        importlib.invalidate_caches()
        return "embedded"
    if not _installed():
        raise BackendError(
            f"{BACKEND_VARIABLE}=detectron2, but no Detectron2 is installed: install it as its INSTALL.md says, "
            f"or unset {BACKEND_VARIABLE} to use the embedded one."
        )
    _check_installed()
    return "detectron2"


def describe_backend() -> str:
    """One line for the log: which Detectron2 runs, its version and place."""
    module = importlib.import_module("detectron2")
    name = _backend_of(module.__file__)
    line = f"Detectron2: {name} ({module.__version__}, {Path(module.__file__ or '').parent})"
    if name == "detectron2" and not module.__version__.startswith(TESTED_VERSIONS):
        line += f"; dyn_d2 was tested with Detectron2 {', '.join(TESTED_VERSIONS)}"
    return line
