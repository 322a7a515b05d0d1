"""Runs tests in a copy of the project from which methods are taken out, as the house promises that one can:

python tests/without_method.py fsrw tafe_net -- -m "not slow"
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("dyn_d2", "tests", "configs", "tools", "datasets", "benchmarks", "docs")
FILES = ("pyproject.toml", "setup.py", "README.md", "CONTRIBUTING.md", "Makefile", "LICENSE")
IMPORT_ALL = """
import importlib, pkgutil, dyn_d2
names = [m.name for m in pkgutil.walk_packages(dyn_d2.__path__, "dyn_d2.")]
names = [n for n in names if not n.startswith("dyn_d2.embedded") and not n.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(len(names), "modules")
"""


def copy_without(methods: Iterable[str], folder: Path) -> None:
    """Copy the project to ``folder``, but for the methods' packages, tests and configs.

    Raises:
        FileNotFoundError: there is no such method.
    """
    for method in methods:
        if not (ROOT / "dyn_d2" / "methods" / method).is_dir():
            raise FileNotFoundError(f"there is no method {method}.")
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".pytest_cache")
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=ignored, symlinks=True)
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    for method in methods:
        shutil.rmtree(folder / "dyn_d2" / "methods" / method)
        shutil.rmtree(folder / "tests" / "methods" / method)
        for configs in (folder / "configs").iterdir():
            if configs.name.lower() == method.replace("_", ""):
                shutil.rmtree(configs)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Python in the copy, with the copy's package."""
    env = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Arguments of pytest stand after --.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("methods", nargs="+", help="names of their folders")
    parser.add_argument("--folder", default="output/without", help="where the copy goes")
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    args, options = parser.parse_args(words[:end]), words[end + 1 :]
    folder = Path(args.folder).resolve() / "_".join(args.methods)
    shutil.rmtree(folder, ignore_errors=True)
    copy_without(args.methods, folder)
    # The pages of docs name the files of every method.
    pages = ["--ignore=tests/test_readme.py", "--ignore=tests/docs"]
    for command in (("-c", IMPORT_ALL), ("-m", "pytest", "-q", *pages, *options)):
        done = run(folder, *command)
        print(done.stdout[-4000:], done.stderr[-2000:], sep="\n")
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
