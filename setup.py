"""Package metadata. Nothing here imports torch: the package has to build where torch is not installed."""

import re
import subprocess
import sys
from pathlib import Path

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildPy(build_py):
    """Also compiles the operators into the user's cache, where torch and a compiler are at hand.

    pip's isolated builds see no torch, installed or not: there, and wherever this fails, the operators are compiled at
    their first use, or by ``python -m dyn_d2.ops``.
    """

    def run(self) -> None:
        super().run()
        try:
            command = [sys.executable, "-m", "dyn_d2.ops"]
            compiled = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=600).returncode == 0
        except (OSError, subprocess.SubprocessError):
            compiled = False
        later = "are compiled at their first use, or now by 'python -m dyn_d2.ops'"
        print(f"dyn_d2: operators {'compiled' if compiled else later}")


setup(
    name="dyn_d2",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "dyn_d2" / "__init__.py").read_text()).group(1),
    description="Networks whose input decides what is computed, as an extension of Detectron2",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    packages=find_namespace_packages(include=["dyn_d2", "dyn_d2.*"]),
    package_data={"": ["*.yaml", "*.json", "*.html", "*.cpp", "*.h", "*.cu", "*.cuh"]},
    cmdclass={"build_py": BuildPy},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",  # each torchvision release names the torch that it fits
        "numpy>=2",
        "fvcore>=0.1.5",
        "iopath>=0.1.9",
        "yacs>=0.1.8",
        "pycocotools>=2.0.8",
        "lvis>=0.5.3",
        "opencv-python>=4.10",
        "cityscapesscripts>=2.2",
        "pillow>=10",
        "scipy>=1.11",
        "shapely>=2",  # polygons of cropped masks
        "scikit-learn>=1.4",
        "matplotlib>=3.8",
        "tensorboard>=2.14",
        "ninja",  # compiled operators, where there is a compiler
        "tqdm",
        "termcolor>=1.1",
        "tabulate",
        "cloudpickle",
        "packaging",
    ],
    extras_require={
        "test": ["pytest>=8", "pytest-xdist>=3.5", "pytest-timeout>=2.3", "hypothesis>=6.100", "ruff>=0.6"]
    },
)
