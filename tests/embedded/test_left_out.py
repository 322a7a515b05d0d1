"""Names that the embedded engine leaves out."""

import importlib

import pytest

from dyn_d2.backend import describe_backend

if "embedded" not in describe_backend():
    pytest.skip("an installed Detectron2 leaves nothing out", allow_module_level=True)

from detectron2.left_out import _MODULES, _NAMES


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


@pytest.mark.parametrize("module", _MODULES)
def test_importing_a_module_that_is_left_out_says_so(module: str) -> None:
    with pytest.raises(ImportError) as error:
        importlib.import_module(f"detectron2.{module}")
    assert f"detectron2.{module}: the embedded engine leaves out {_MODULES[module]}" in str(error.value)


def test_from_imports_say_so_too_and_other_modules_are_unknown() -> None:
    with pytest.raises(ImportError, match="leaves out the export of models"):
        from detectron2 import export  # noqa: F401
    with pytest.raises(ImportError, match="leaves out the export of models"):
        from detectron2.export import TracingAdapter  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="detectron2.never_heard_of"):
        importlib.import_module("detectron2.never_heard_of")


# What other projects import from Detectron2: known here, or refused by name.
NAMES = """
data.datasets.register_coco: register_coco_instances register_coco_panoptic_separated
data.transforms: TransformGen
engine: AutogradProfiler TorchMemoryStats TorchProfiler
engine.hooks: AutogradProfiler TorchMemoryStats TorchProfiler
layers: empty_input_loss_func_wrapper move_device_like shapes_to_tensor
modeling: FCOS PanopticFPN ROI_KEYPOINT_HEAD_REGISTRY build_keypoint_head
modeling.anchor_generator: DefaultAnchorGenerator RotatedAnchorGenerator
modeling.box_regression: Box2BoxTransform Box2BoxTransformLinear Box2BoxTransformRotated
modeling.meta_arch: FCOS PanopticFPN
modeling.roi_heads: RROIHeads
solver: WarmupCosineLR WarmupMultiStepLR
"""
MODULES = """
checkpoint.catalog data.datasets.cityscapes_panoptic data.datasets.coco_panoptic data.datasets.lvis_v0_5_categories
data.datasets.lvis_v1_categories layers.roi_align_rotated
"""


@pytest.mark.parametrize("line", NAMES.strip().splitlines())
def test_a_fixed_list_of_names_is_known_or_refused(line: str) -> None:
    package, _, names = line.partition(": ")
    module = importlib.import_module(f"detectron2.{package}")
    for name in names.split():
        if name not in vars(module):
            with pytest.raises(ImportError, match=f"{name}: the embedded engine leaves out"):
                getattr(module, name)


@pytest.mark.parametrize("module", MODULES.split())
def test_a_fixed_list_of_modules_is_refused(module: str) -> None:
    with pytest.raises(ImportError, match=f"{module}: the embedded engine leaves out"):
        importlib.import_module(f"detectron2.{module}")
