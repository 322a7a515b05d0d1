"""Packages that only one data set or evaluator needs: pip's extras of dyn_d2."""

import importlib.util

# Imported name -> the extra of pyproject.toml that brings it, and what needs it.
_EXTRAS = {
    "cityscapesscripts": ("cityscapes", "Cityscapes' instances and scores"),
    "albumentations": ("albumentations", "INPUT.ALBUMENTATIONS"),
    "wandb": ("wandb", "SOLVER.WRITERS wandb"),
    "mlflow": ("mlflow", "SOLVER.WRITERS mlflow"),
    "datumaro": ("convert", "further formats of annotations (--from datumaro:...)"),
    "fiftyone": ("fiftyone", "data sets to browse (dyn-d2 browse)"),
    "h5py": ("hdf5", "features in HDF5 files"),
    "onnx": ("export", "ONNX files"),
    "onnxscript": ("export", "ONNX files"),
    "onnxruntime": ("export", "running ONNX files"),
    "ray": ("ray", "trainings on a cluster (--cluster)"),
}


def how_to_install(module: str | None) -> str:
    """One sentence on a module that is not there: what needs it, and the command that brings it; "" for one that is in
    no extra."""
    top = (module or "").partition(".")[0]
    if top not in _EXTRAS:
        return ""
    extra, what = _EXTRAS[top]
    return f"{what} need the package {top}: pip install 'dyn_d2[{extra}]'"


def is_missing(module: str) -> bool:
    """Whether a module cannot be found, without importing it."""
    return importlib.util.find_spec(module) is None
