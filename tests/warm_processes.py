"""Processes of Python that need not import torch: each is forked from one that has, which every test process starts at
its first use. What they run is a script or a module, as on a command line; dyn_d2 itself they import anew."""

import contextlib
import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

# Nothing here starts threads, and nothing here is ours.
PRELOADED = ["torch", "torchvision", "scipy.ndimage", "matplotlib.figure", "pycocotools.cocoeval", "sklearn.datasets"]


@functools.cache
def _forkserver():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _child(arguments: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for path, number in ((out, 1), (err, 2)):
        with open(path, "wb") as file:
            os.dup2(file.fileno(), number)
    module = arguments[0] == "-m"
    target, *rest = arguments[1:] if module else arguments
    sys.argv, sys.orig_argv = [target, *rest], [sys.executable, *arguments]
    first = cwd if module else str(Path(target).resolve().parent)
    sys.path[:] = [first, *env.get("PYTHONPATH", "").split(os.pathsep), *sys.path]
    if module:
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(target, run_name="__main__")


def run_warm(
    arguments: Sequence[str], cwd: Path | str, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess:
    """``python ARGUMENTS`` to its end, as ``subprocess.run`` with captured text.

    Args:
        arguments: "-m", a module and its arguments; or a script and its arguments.

    Raises:
        subprocess.TimeoutExpired: it took longer than ``timeout`` seconds, and was killed.
    """
    words = [str(word) for word in arguments]
    with tempfile.TemporaryDirectory() as folder:
        out, err = os.path.join(folder, "out"), os.path.join(folder, "err")
        process = _forkserver().Process(target=_child, args=(words, str(cwd), dict(env), out, err))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(words, timeout)
        texts = []
        for path in (out, err):
            with contextlib.suppress(FileNotFoundError):
                texts.append(Path(path).read_text(errors="replace"))
        return subprocess.CompletedProcess(words, process.exitcode, *texts)
