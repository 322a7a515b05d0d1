"""Says whether this installation can work, and the exact command that fixes what cannot.

    dyn-d2 doctor
    python -m dyn_d2.doctor

Exit status 0 when all required parts work, 1 otherwise. Imports are tried one by one, so that the answer comes also
where ``import dyn_d2`` fails.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PIP = f"{sys.executable} -m pip install"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: what was looked at.
        state: "ok", "note" (works, but worth knowing) or "problem".
        text: what was found.
        remedy: a command or an action; "" where nothing is to be done.
    """

    subject: str
    state: str
    text: str
    remedy: str = ""


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info < (3, 10):  # noqa: UP036  the very case that this tool exists for
        return Finding("python", "problem", f"{version} is too old", "install Python 3.10 or newer")
    return Finding("python", "ok", version)


def _torch() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("torch", "problem", f"does not import: {error}", f"{PIP} 'torch>=2.6' torchvision")
    if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 6):
        return Finding(
            "torch", "problem", f"{torch.__version__} is too old", f"{PIP} --upgrade 'torch>=2.6' torchvision"
        )
    text = (
        f"{torch.__version__}, built for CUDA {torch.version.cuda}"
        if torch.version.cuda
        else f"{torch.__version__} (CPU)"
    )
    if torch.cuda.is_available():
        return Finding("torch", "ok", f"{text}; GPU: {torch.cuda.get_device_name()}")
    if torch.version.cuda and shutil.which("nvidia-smi"):
        return Finding(
            "torch", "note", f"{text}, but no GPU can be used although nvidia-smi is here",
            "update the NVIDIA driver, or install a torch that is built for the driver's CUDA version",
        )  # fmt: skip
    return Finding("torch", "ok", f"{text}; no GPU here: set MODEL.DEVICE cpu")


def _torchvision() -> Finding:
    remedy = f"{PIP} --upgrade --force-reinstall torch torchvision"
    try:
        import torch
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except Exception as error:  # a mismatch with torch shows as one of many types
        return Finding("torchvision", "problem", f"does not work with this torch: {error}", remedy)
    return Finding("torchvision", "ok", torchvision.__version__)


def _numpy() -> Finding:
    try:
        import numpy
    except ImportError as error:
        return Finding("numpy", "problem", f"does not import: {error}", f"{PIP} 'numpy>=2'")
    if int(numpy.__version__.split(".")[0]) < 2:
        return Finding("numpy", "problem", f"{numpy.__version__} is too old", f"{PIP} --upgrade 'numpy>=2'")
    return Finding("numpy", "ok", numpy.__version__)


def _detectron2() -> Finding:
    from dyn_d2.backend import choose_backend, describe_backend

    try:
        choose_backend()
        return Finding("Detectron2", "ok", describe_backend().removeprefix("Detectron2: "))
    except ImportError as error:
        return Finding(
            "Detectron2", "problem", str(error), "DYN_D2_BACKEND=embedded runs without an installed Detectron2"
        )


def _package(module: str, distribution: str, what_for: str, required: bool, remedy: str = "") -> Callable[[], Finding]:
    def look() -> Finding:
        try:
            importlib.import_module(module)
        except Exception as error:  # an OpenCV without libGL, an extension built for another numpy ...
            words = remedy if "libGL" in str(error) and remedy else f"{PIP} {distribution}"
            state = "problem" if required else "note"
            return Finding(distribution, state, f"does not import ({what_for}): {error}", words)
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            version = "present"
        return Finding(distribution, "ok", version)

    return look


def _extra(module: str, extra: str, what_for: str) -> Callable[[], Finding]:
    """A package that most users need not have."""

    def look() -> Finding:
        if importlib.util.find_spec(module) is None:
            return Finding(module, "ok", f"not installed; only {what_for} would need it: {PIP} 'dyn_d2[{extra}]'")
        return _package(module, module, what_for, required=False)()

    return look


_HEADLESS = f"{sys.executable} -m pip uninstall -y opencv-python && {PIP} opencv-python-headless"


def _dyn_d2() -> Finding:
    try:
        importlib.import_module("dyn_d2.data")
        importlib.import_module("dyn_d2.modeling")
    except Exception as error:
        return Finding(
            "dyn_d2", "problem", f"does not import: {type(error).__name__}: {error}", "fix the problems above"
        )
    from dyn_d2 import __version__

    return Finding("dyn_d2", "ok", f"{__version__} in {Path(__file__).parent}")


def _operators() -> Finding:
    """Compiled kernels: torch code stands in for them, and is slower."""
    try:
        from dyn_d2.ops import channel_conv, message_passing

        works = channel_conv.load() and message_passing.load()
    except Exception as error:
        return Finding("operators", "note", f"could not be looked at: {type(error).__name__}: {error}")
    if works:
        return Finding("operators", "ok", "compiled")
    return Finding(
        "operators", "note", "not compiled, slower torch code runs instead (the log says why)",
        f"apt-get install g++ (or your system's C++ compiler), {PIP} ninja, and unset DYN_D2_COMPILE",
    )  # fmt: skip


def _datasets() -> Finding:
    root = os.environ.get("DETECTRON2_DATASETS")
    if root is None:
        return Finding("data sets", "note", "DETECTRON2_DATASETS is not set: builtin sets are looked for in ./datasets")
    if not Path(root).expanduser().is_dir():
        return Finding(
            "data sets", "note", f"DETECTRON2_DATASETS={root} is no folder",
            "export DETECTRON2_DATASETS=/path/that/holds/coco (see datasets/README.md)",
        )  # fmt: skip
    found = [
        name
        for name in (
            "coco",
            "lvis",
            "VOC2007",
            "VOC2012",
            "cityscapes",
            "bdd100k",
            "digit_scenes",
            "cifar10_jpeg",
            "imagenet",
        )
        if Path(root, name).exists()
    ]
    return Finding("data sets", "ok", f"{root}: {', '.join(found) or 'none of the builtin sets'}")


def _machine() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    text = f"{os.cpu_count()} cores, {free:.0f} GB free in {Path.cwd()}"
    return Finding(
        "machine", "ok" if free > 2 else "note", text, "" if free > 2 else "checkpoints need room: free some"
    )


CHECKS: tuple[Callable[[], Finding], ...] = (
    _python,
    _numpy,
    _torch,
    _torchvision,
    _package("fvcore", "fvcore", "configs, schedules, FLOPs", True),
    _package("iopath", "iopath", "file access", True),
    _package("pycocotools.mask", "pycocotools", "COCO evaluation and masks", True),
    _package("cv2", "opencv-python", "LVIS evaluation, GrabCut", False, _HEADLESS),
    _package("lvis", "lvis", "LVIS evaluation", False, _HEADLESS),
    _package("sklearn", "scikit-learn", "DigitScenes", False),
    _extra("cityscapesscripts", "cityscapes", "Cityscapes"),
    _extra("h5py", "hdf5", "HDF5 files"),
    _detectron2,
    _dyn_d2,
    _operators,
    _datasets,
    _machine,
)


def examine() -> list[Finding]:
    """Run every check."""
    return [check() for check in CHECKS]


def report(findings: list[Finding]) -> str:
    """The findings as text, remedies below."""
    marks = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}
    lines = [f"{marks[f.state]}  {f.subject:18s} {f.text}" for f in findings]
    remedies = [f"  {f.subject}: {f.remedy}" for f in findings if f.remedy and f.state != "ok"]
    return "\n".join(
        [*lines, *(["", "What to do:", *remedies] if remedies else ["", "Everything that dyn_d2 needs works."])]
    )


def main() -> int:
    argparse.ArgumentParser(prog="dyn-d2 doctor", description="What does not fit here, and its remedy.").parse_args()
    with warnings.catch_warnings():
        # What torch says about fvcore's scripted losses is nothing a user can change.
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
        findings = examine()
    print(report(findings))
    return int(any(f.state == "problem" for f in findings))


if __name__ == "__main__":
    sys.exit(main())
