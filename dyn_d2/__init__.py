"""dyn_d2: networks whose input decides what is computed, as an extension of Detectron2.

``import dyn_d2`` chooses which Detectron2 runs and registers every data set, backbone, head and meta-architecture;
``add_dyn_d2_config(cfg)`` adds the config keys.
"""

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detectron2.config import CfgNode

__version__ = "0.2.0"


def register() -> None:
    """Choose the Detectron2, and register everything. ``import dyn_d2`` does so, except in the program ``dyn-d2``."""
    from dyn_d2.backend import choose_backend

    with warnings.catch_warnings():
        # fvcore scripts its losses when it is imported; what torch says about that is nothing a user can change.
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
        choose_backend()

        from dyn_d2 import data, gating, methods, modeling  # noqa: F401  only registration


def add_dyn_d2_config(cfg: "CfgNode") -> None:
    """Add the config keys of dyn_d2 to Detectron2's ``get_cfg()``, in place."""
    from dyn_d2.config import add_dyn_d2_config as add

    add(cfg)


def _is_program() -> bool:
    """Whether this process is ``dyn-d2`` or its ``doctor``: the one answers ``--help`` at once and registers when a
    command needs it, the other has to work exactly where that fails. Processes that they start are not."""
    given = len(sys.argv)
    if sys.argv[:1] == ["-m"]:  # Python is looking for the module
        return sys.orig_argv[-given].removeprefix("-m") in ("dyn_d2", "dyn_d2.doctor")
    return given > 0 and sys.orig_argv[-given:] == sys.argv and Path(sys.argv[0]).stem == "dyn-d2"


if not _is_program():
    register()
