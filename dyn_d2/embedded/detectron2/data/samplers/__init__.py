# ruff: noqa: F401, I001
"""Which images, in which order."""

from .distributed_sampler import InferenceSampler, RandomSubsetTrainingSampler, RepeatFactorTrainingSampler
from .distributed_sampler import TrainingSampler
