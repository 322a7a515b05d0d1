"""Operators with compiled kernels, each with a slow obvious reference. Nothing in here imports detectron2.

A kernel is compiled at its first use, or by ``python -m dyn_d2.ops``, and kept (see ``build``); where that is not
possible, torch code does its work.
"""

from dyn_d2.ops import attention as attention  # whoever counts multiply-adds has its formula
