"""Names that the embedded engine leaves out."""

import importlib

import pytest

from dyn_d2.backend import describe_backend

if "embedded" not in describe_backend():
    pytest.skip("an installed Detectron2 leaves nothing out", allow_module_level=True)

from detectron2.left_out import _NAMES


@pytest.mark.parametrize("package", _NAMES)
def test_asking_for_it_says_so(package: str) -> None:
    module = importlib.import_module(f"detectron2.{package}")
    for what, names in _NAMES[package].items():
        for name in names.split():
            assert name not in vars(module)
            with pytest.raises(ImportError) as error:
                getattr(module, name)
            assert name in str(error.value) and f"leaves out {what}; install Detectron2" in str(error.value)
    with pytest.raises(AttributeError, match="no attribute 'NeverHeardOf'"):
        module.NeverHeardOf  # noqa: B018
