"""Layer Cascade (Li et al. 2017): easy pixels are settled in an early stage."""

from . import head, inception_resnet, meta_arch, resnet  # noqa: F401  only registration
