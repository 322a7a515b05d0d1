"""The compact engine of dyn_d2: the part of Detectron2's public interface that dyn_d2 uses, written anew.

It is imported as ``detectron2`` only where Detectron2 itself is not installed (see ``dyn_d2/backend.py``).
"""

from .left_out import refuse_modules
from .utils.env import setup_environment

setup_environment()
refuse_modules()

# The interface follows Detectron2 0.6; the local part ("+...") keeps comparisons such as >= 0.6 true.
__version__ = "0.6+dynd2"
