"""Random seeds and the set-up of the process's environment."""

import logging
import os
import random
import sys

import numpy as np
import torch

TORCH_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])


def seed_all_rng(seed: int | None = None) -> None:
    """Seed the generators of Python, numpy and torch (all devices).

    Args:
        seed: 0 <= seed < 2**32; None draws one from the operating system and logs it.
    """
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "little")
        logging.getLogger(__name__).info(f"Using a generated random seed {seed}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    # Only seen by processes started from here; this one has fixed its string hashes already.
    os.environ["PYTHONHASHSEED"] = str(seed)


def setup_environment() -> None:
    """Run when the package is imported; reads ``DETECTRON2_DISABLE_CV2``."""
    # OpenCV's OpenCL path gets in the way of CUDA and of worker processes.
    os.environ["OPENCV_OPENCL_RUNTIME"] = "disabled"
    if int(os.environ.get("DETECTRON2_DISABLE_CV2", "0")):
        sys.modules["cv2"] = None
