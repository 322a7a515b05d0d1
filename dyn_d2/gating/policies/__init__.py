"""Policies: which units of a gated backbone run, decided per image. One file a policy."""

from . import (  # noqa: F401  only registration
    all_open,
    blockdrop,
    cdb,
    convnet_aig,
    deepmoe,
    fixed,
    random_skip,
    skipnet,
)
from .base import POLICY_REGISTRY, Policy, build_policy  # noqa: F401
from .gate_layers import pool_valid, valid_area  # noqa: F401
