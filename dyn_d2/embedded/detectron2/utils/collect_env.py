"""What a bug report should say about the machine and its software."""

import importlib
import os
import sys

import torch
from tabulate import tabulate

_PACKAGES = ("detectron2", "torch", "torchvision", "numpy", "fvcore", "iopath", "pycocotools", "PIL", "cv2")


def _describe(package: str) -> str:
    """Version and place of an installed package, or why it does not load (a missing libGL, say)."""
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        return f"not importable: {error}"
    return f"{getattr(module, '__version__', 'unknown version')} @{os.path.dirname(module.__file__)}"


def collect_env_info() -> str:
    """A table of versions and devices."""
    rows = [("sys.platform", sys.platform), ("Python", sys.version.replace("\n", ""))]
    rows += [(package, _describe(package)) for package in _PACKAGES]
    rows.append(("CPU threads", torch.get_num_threads()))
    rows.append(("CUDA of torch", torch.version.cuda or "none"))
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = device.total_memory / 2**30
        rows.append((f"GPU {index}", f"{device.name}, {memory:.0f} GiB, arch {device.major}.{device.minor}"))
    if not torch.cuda.is_available():
        rows.append(("GPU", "none: torch.cuda.is_available() == False"))
    return tabulate(rows)


if __name__ == "__main__":
    print(collect_env_info())
