"""Package metadata. Nothing here imports torch: the package has to build where torch is not installed."""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).parent

setup(
    name="dyn_d2",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "dyn_d2" / "__init__.py").read_text()).group(1),
    description="Networks whose input decides what is computed, as an extension of Detectron2",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    packages=find_namespace_packages(include=["dyn_d2", "dyn_d2.*"]),
    package_data={"": ["*.yaml", "*.json", "*.html", "*.cpp", "*.h", "*.cu", "*.cuh"]},
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
