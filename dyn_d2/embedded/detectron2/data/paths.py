"""Where the built-in data sets lie, and what to say when a file of a data set is missing."""

import os

from detectron2.utils.file_io import PathManager

VARIABLE = "DETECTRON2_DATASETS"


def datasets_root() -> str:
    """The folder that holds coco/, lvis/, VOC2007/, cityscapes/, ...: $DETECTRON2_DATASETS, else ./datasets."""
    return os.path.expanduser(os.environ.get(VARIABLE, "datasets"))


def require(path: str | os.PathLike, what: str) -> str:
    """``path`` as text, if it exists; otherwise one FileNotFoundError that names it and the remedy."""
    path = os.fspath(path)
    if PathManager.exists(path):
        return path
    hint = "Check the paths that the data set was registered with."
    if path.startswith(datasets_root()):
        state = f"is {os.environ[VARIABLE]}" if VARIABLE in os.environ else "is not set, so ./datasets is used"
        hint = f"The environment variable {VARIABLE} {state}: it has to name the folder with coco/, VOC2007/ and so on."
    raise FileNotFoundError(f"{what} not found: {path}. {hint}")
