"""Random seeds and the set-up of the process's environment."""

import importlib
import importlib.util
import logging
import os
import random
import sys

import numpy as np
import torch

__all__ = ["TORCH_VERSION", "seed_all_rng", "setup_custom_environment", "setup_environment"]

TORCH_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])

_environment_is_set_up = False


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
    """Run once, when the package is imported; reads ``DETECTRON2_DISABLE_CV2`` and ``DETECTRON2_ENV_MODULE``."""
    global _environment_is_set_up
    if _environment_is_set_up:
        return
    _environment_is_set_up = True
    # OpenCV's OpenCL path gets in the way of CUDA and of worker processes.
    os.environ["OPENCV_OPENCL_RUNTIME"] = "disabled"
    if int(os.environ.get("DETECTRON2_DISABLE_CV2", "0")):
        sys.modules["cv2"] = None
    if custom := os.environ.get("DETECTRON2_ENV_MODULE"):
        setup_custom_environment(custom)


def setup_custom_environment(custom_module: str) -> None:
    """Import a user's module (dotted name, or path of a .py file) and call its ``setup_environment()``.

    Raises:
        AttributeError: the module has no such function.
    """
    if custom_module.endswith(".py"):
        spec = importlib.util.spec_from_file_location("detectron2.utils.env.custom_module", custom_module)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(custom_module)
    if not callable(getattr(module, "setup_environment", None)):
        raise AttributeError(f"{custom_module}, named by DETECTRON2_ENV_MODULE, has no function 'setup_environment'.")
    module.setup_environment()
