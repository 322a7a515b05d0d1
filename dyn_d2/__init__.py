"""dyn_d2: networks whose input decides what is computed, as an extension of Detectron2.

``import dyn_d2`` chooses the engine and registers every data set, backbone, head and meta-architecture;
``add_dyn_d2_config(cfg)`` adds the config keys.
"""

import sys
import warnings

__version__ = "0.1.0"

# `python -m dyn_d2.doctor` has to work exactly where the imports below fail.
if sys.orig_argv[1:3] != ["-m", "dyn_d2.doctor"]:
    from dyn_d2.backend import choose_backend

    with warnings.catch_warnings():
        # fvcore scripts its losses when it is imported; what torch says about that is nothing a user can change.
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
        choose_backend()

        from dyn_d2 import data, gating, methods, modeling  # noqa: F401  only registration
        from dyn_d2.config import add_dyn_d2_config  # noqa: F401
