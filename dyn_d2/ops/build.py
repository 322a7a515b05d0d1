"""Compiles the kernels of this package at first use, or for ``python -m dyn_d2.ops``, and keeps them for later runs.

Needs a C++ compiler and ninja (``pip install ninja``). Where compiling fails a warning says so once and torch code runs
instead. Environment variables:

    DYN_D2_COMPILE=0      compile and load nothing
    DYN_D2_OPS_CACHE      folder of compiled kernels, instead of $XDG_CACHE_HOME/dyn_d2/ops (~/.cache)
"""

import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from dyn_d2.utils.lock import one_at_a_time

COMPILE_VARIABLE, CACHE_VARIABLE = "DYN_D2_COMPILE", "DYN_D2_OPS_CACHE"
logger = logging.getLogger(__name__)

# Sums may be re-ordered by fused multiply-adds only: the kernels give the same result on every run.
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-ffp-contract=fast")


@functools.cache
def load_kernel(name: str, sources: tuple[Path, ...]) -> bool:
    """Make the operators that ``sources`` register with torch.library usable in this process, compiled if need be.

    Several processes may ask at once: one compiles, the others wait for it.

    Args:
        name: of the library, letters and underscores.
        sources: .cpp and .cu files, and the headers that they include.

    Returns:
        Whether the operators are there now. If not, the reason has been logged.
    """
    if os.environ.get(COMPILE_VARIABLE) == "0":
        logger.info(f"{COMPILE_VARIABLE}=0: {name} runs as torch code.")
        return False
    try:
        folder = _cache_folder() / f"{name}-{_fingerprint(sources)}"
        with one_at_a_time(folder.with_suffix(".lock")):
            if not (folder / "complete").exists():
                _compile(name, sources, folder)
        torch.ops.load_library(folder / f"{name}.so")
    except (OSError, RuntimeError, ImportError, subprocess.SubprocessError) as error:
        logger.warning(f"{name} is not compiled, slower torch code runs instead ({_first_line(error)}).")
        return False
    return True


def _fingerprint(sources: Sequence[Path]) -> str:
    """Of all that a compiled kernel depends on; home folders are shared between machines with unlike processors."""
    digest = hashlib.sha256("\n".join([*_FLAGS, torch.__version__, sys.version, platform.machine()]).encode())
    processor = Path("/proc/cpuinfo")
    if processor.exists():
        lines = processor.read_text().splitlines()
        digest.update(next((line for line in lines if line.startswith(("flags", "Features"))), "").encode())
    if any(source.suffix == ".cu" for source in sources):
        capabilities = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
        digest.update(repr((torch.version.cuda, sorted(set(capabilities)))).encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _cache_folder() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dyn_d2" / "ops"
    folder = Path(os.environ.get(CACHE_VARIABLE) or default)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    # Other users can write to the folder of temporary files, so its part for us has to be ours alone.
    folder = Path(tempfile.gettempdir()) / f"dyn_d2_ops_{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise OSError(f"{folder} belongs to somebody else: set {CACHE_VARIABLE} to a folder of your own")
    return folder


def _compile(name: str, sources: Sequence[Path], folder: Path) -> None:
    logger.info(f"Compiling {name} for this machine (once, less than a minute) ...")
    started = time.perf_counter()
    # What a killed build has left, its lock file included.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    # Importing it complains where CUDA's compiler is present and a GPU is not.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils import cpp_extension

    before = os.environ.get("PATH", "")
    # The ninja of an environment that is used without having been activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), before])
    try:
        cpp_extension.load(
            name,
            [str(source) for source in sources if source.suffix in (".cpp", ".cu")],
            extra_cflags=list(_FLAGS),
            extra_cuda_cflags=["-O3"],
            extra_ldflags=["-fopenmp"],
            build_directory=str(folder),
            is_python_module=False,
        )
    finally:
        os.environ["PATH"] = before
    (folder / "complete").touch()
    logger.info(f"Compiled {name} in {time.perf_counter() - started:.0f} s.")


def _first_line(error: Exception) -> str:
    """The line of a compiler's report that tells most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # The first line of torch's report names the extension and its whole command.
    telling = [line for sign in ("error:", "cannot find", "error") for line in lines if sign in line.lower()]
    return (telling or lines)[0][:300]
