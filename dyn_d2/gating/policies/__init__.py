"""Policies: which units of a gated backbone run, decided per image. One file a policy.

Sources, and whose numbers the equations, figures and tables that the code names are:

- SkipNet: Wang, Yu, Dou, Darrell, Gonzalez, "SkipNet: Learning Dynamic Routing in Convolutional Networks", ECCV 2018.
  Numbers 2.x are those of chapter 2 of Wang, X., "The Design of Dynamic Neural Networks for Efficient Learning and
  Inference", PhD thesis, UC Berkeley 2020, UCB/EECS-2020-236.
- DeepMoE: Wang, Yu, Dunlap, Ma, Wang, Mirhoseini, Darrell, Gonzalez, "Deep Mixture of Experts via Shallow Embedding",
  UAI 2019. Numbers 3.x are those of chapter 3 of the same.
- CDB: Su, Zhou, Wu, Liu, Su, Liang, Yan, "Context-aware Dynamic Block"; its own numbers.
- ConvNet-AIG: Veit, Belongie, "Convolutional Networks with Adaptive Inference Graphs", ECCV 2018.
- BlockDrop: Wu et al., "BlockDrop: Dynamic Inference Paths in Residual Networks", CVPR 2018; its own numbers.
- Stochastic depth: Huang, Sun, Liu, Sedra, Weinberger, "Deep Networks with Stochastic Depth", ECCV 2016.
"""

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
