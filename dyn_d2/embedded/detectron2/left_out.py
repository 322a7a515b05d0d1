"""What this engine leaves out of Detectron2, and the one sentence that says so where somebody asks for it."""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from typing import NoReturn

# Package -> what is left out -> its names there.
_NAMES = {
    "config": {
        "Python configs (use yaml)": "LazyCall LazyConfig instantiate",
        "configs of version 1": "downgrade_config upgrade_config",
    },
    "data.transforms": {
        "rotation": "RandomRotation RotationTransform",
        "augmentations that dyn_d2 does not use": "ColorTransform ExtentTransform MinIoURandomCrop PILColorTransform "
        "RandomExtent RandomResize",
        "the old name of Augmentation": "TransformGen",
    },
    "data": {"precomputed proposals": "load_proposals_into_dataset"},
    "data.datasets": {"panoptic segmentation": "register_coco_panoptic register_coco_panoptic_separated"},
    "data.datasets.register_coco": {"panoptic segmentation": "register_coco_panoptic_separated"},
    "engine": {"profiling hooks (use torch.profiler)": "AutogradProfiler TorchMemoryStats TorchProfiler"},
    "engine.hooks": {"profiling hooks (use torch.profiler)": "AutogradProfiler TorchMemoryStats TorchProfiler"},
    "evaluation": {"panoptic segmentation": "COCOPanopticEvaluator", "rotated boxes": "RotatedCOCOEvaluator"},
    "layers": {
        "DeepLab's blocks": "ASPP DepthwiseSeparableConv2d",
        "deformable convolution": "DeformConv ModulatedDeformConv",
        "helpers for tracing": "move_device_like shapes_to_tensor",
        "losses that torchvision.ops has": "ciou_loss diou_loss",
        "wrappers of losses for empty inputs": "empty_input_loss_func_wrapper",
        "rotated boxes": "ROIAlignRotated batched_nms_rotated nms_rotated roi_align_rotated",
    },
    "modeling": {
        "FCOS": "FCOS",
        "keypoints": "ROI_KEYPOINT_HEAD_REGISTRY build_keypoint_head",
        "panoptic segmentation": "PanopticFPN",
        "test-time augmentation": "DatasetMapperTTA GeneralizedRCNNWithTTA",
        "vision transformers": "MViT SimpleFeaturePyramid SwinTransformer ViT",
    },
    "modeling.anchor_generator": {"rotated boxes": "RotatedAnchorGenerator"},
    "modeling.backbone": {
        "RegNet": "RegNet",
        "vision transformers": "MViT SimpleFeaturePyramid SwinTransformer ViT get_vit_lr_decay_rate",
    },
    "modeling.box_regression": {
        "FCOS": "Box2BoxTransformLinear",
        "rotated boxes": "Box2BoxTransformRotated",
    },
    "modeling.meta_arch": {"FCOS": "FCOS", "panoptic segmentation": "PanopticFPN"},
    "modeling.roi_heads": {
        "cascades of box heads": "CascadeROIHeads",
        "keypoints": "BaseKeypointRCNNHead KRCNNConvDeconvUpsampleHead ROI_KEYPOINT_HEAD_REGISTRY build_keypoint_head",
        "rotated boxes": "RROIHeads",
    },
    "solver": {"schedulers of version 0.3 (use WarmupParamScheduler)": "WarmupCosineLR WarmupMultiStepLR"},
    "structures": {
        "anchor-free detection": "pairwise_point_box_distance",
        "keypoints": "Keypoints heatmaps_to_keypoints",
        "rotated boxes": "RotatedBoxes pairwise_iou_rotated",
    },
}

# Modules and packages of Detectron2 -> what is left out with them.
_MODULES = {
    "export": "the export of models (dyn-d2 export writes ONNX files)",
    "projects": "Detectron2's projects",
    "tracking": "tracking",
    "checkpoint.catalog": "the catalogue of Detectron2's own checkpoints",
    "config.compat": "configs of version 1",
    "config.instantiate": "Python configs (use yaml)",
    "config.lazy": "Python configs (use yaml)",
    "data.benchmark": "the benchmark of loaders",
    "data.datasets.cityscapes_panoptic": "panoptic segmentation",
    "data.datasets.coco_panoptic": "panoptic segmentation",
    "data.datasets.lvis_v0_5_categories": "LVIS' list of categories (its json has them)",
    "data.datasets.lvis_v1_categories": "LVIS' list of categories (its json has them)",
    "evaluation.fast_eval_api": "the compiled COCO evaluation",
    "evaluation.panoptic_evaluation": "panoptic segmentation",
    "evaluation.rotated_coco_evaluation": "rotated boxes",
    "layers.aspp": "DeepLab's blocks",
    "layers.deform_conv": "deformable convolution",
    "layers.losses": "losses that torchvision.ops has",
    "layers.roi_align_rotated": "rotated boxes",
    "layers.rotated_boxes": "rotated boxes",
    "modeling.backbone.mvit": "vision transformers",
    "modeling.backbone.regnet": "RegNet",
    "modeling.backbone.swin": "vision transformers",
    "modeling.backbone.utils": "vision transformers",
    "modeling.backbone.vit": "vision transformers",
    "modeling.meta_arch.fcos": "FCOS",
    "modeling.meta_arch.panoptic_fpn": "panoptic segmentation",
    "modeling.mmdet_wrapper": "models of mmdetection",
    "modeling.proposal_generator.rrpn": "rotated boxes",
    "modeling.roi_heads.cascade_rcnn": "cascades of box heads",
    "modeling.roi_heads.keypoint_head": "keypoints",
    "modeling.roi_heads.rotated_fast_rcnn": "rotated boxes",
    "modeling.test_time_augmentation": "test-time augmentation",
    "structures.keypoints": "keypoints",
    "structures.rotated_boxes": "rotated boxes",
    "utils.develop": "helpers for its own development",
    "utils.testing": "helpers for its own tests",
    "utils.tracing": "helpers for tracing",
    "utils.video_visualizer": "the drawing of videos (dyn-d2 demo draws their frames)",
}


class _Refusal(MetaPathFinder):
    """Asked last, for modules that nobody has found."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> None:
        package, _, module = name.partition(".")
        if package == __package__ and module in _MODULES:
            # Not a ModuleNotFoundError, which "from detectron2 import export" would turn into another one.
            raise ImportError(str(left_out(name, _MODULES[module])), name=name)


def refuse_modules() -> None:
    """Have imports of ``_MODULES`` say that they are left out."""
    if not any(isinstance(finder, _Refusal) for finder in sys.meta_path):
        sys.meta_path.append(_Refusal())


def left_out(asked: str, what: str) -> NotImplementedError:
    """The error for a request ``asked`` (an argument, a config key and its value) that needs ``what``."""
    return NotImplementedError(f"{asked}: the embedded engine leaves out {what}; install Detectron2 itself to use it.")


def refusal_of(module: str) -> Callable[[str], NoReturn]:
    """The ``__getattr__`` of a package: an ImportError for what is left out, AttributeError for unknown names."""
    reasons = {name: what for what, names in _NAMES[module.partition(".")[2]].items() for name in names.split()}

    def __getattr__(name: str) -> NoReturn:
        if name in reasons:
            raise ImportError(str(left_out(f"{module}.{name}", reasons[name])))
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return __getattr__
