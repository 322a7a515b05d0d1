"""What pyproject.toml cannot say: configs that go into the package, and operators that are compiled where that is
possible. Nothing here imports torch: the package has to build where torch is not installed."""

import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildPy(build_py):
    """Also copies the configs into the package, and compiles the operators into the user's cache, where torch and a
    compiler are at hand.

    pip's isolated builds see no torch, installed or not: there, and wherever this fails, the operators are compiled at
    their first use, or by ``python -m dyn_d2.ops``.
    """

    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # a checkout has its configs beside the package
            target = Path(self.build_lib, "dyn_d2", "configs")
            shutil.copytree(ROOT / "configs", target, dirs_exist_ok=True, ignore=_all_but_yaml)
        try:
            command = [sys.executable, "-m", "dyn_d2.ops"]
            compiled = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=600).returncode == 0
        except (OSError, subprocess.SubprocessError):
            compiled = False
        later = "are compiled at their first use, or now by 'python -m dyn_d2.ops'"
        print(f"dyn_d2: operators {'compiled' if compiled else later}")


def _all_but_yaml(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".yaml") and not Path(folder, name).is_dir()]


setup(cmdclass={"build_py": BuildPy})
