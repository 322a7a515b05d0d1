"""TFA (Wang et al. 2020): two-stage fine-tuning with a cosine classifier."""

from . import cosine_box  # noqa: F401  only registration
