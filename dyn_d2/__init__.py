"""dyn_d2: networks whose input decides what is computed, as an extension of Detectron2.

``import dyn_d2`` chooses the engine and registers every data set, backbone, head and meta-architecture;
``add_dyn_d2_config(cfg)`` adds the config keys.
"""

import sys

__version__ = "0.1.0"

# `python -m dyn_d2.doctor` has to work exactly where the imports below fail.
if sys.orig_argv[1:3] != ["-m", "dyn_d2.doctor"]:
    from dyn_d2.engine_choice import choose_engine

    choose_engine()

    from dyn_d2 import data, modeling  # noqa: F401  only registration
    from dyn_d2.config import add_dyn_d2_config  # noqa: F401
