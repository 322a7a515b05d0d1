"""What this engine leaves out of Detectron2, and the one sentence that says so where somebody asks for it."""

from collections.abc import Callable
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
    },
    "data": {"precomputed proposals": "load_proposals_into_dataset"},
    "data.datasets": {"panoptic segmentation": "register_coco_panoptic register_coco_panoptic_separated"},
    "engine": {"profiling hooks (use torch.profiler)": "TorchMemoryStats TorchProfiler"},
    "evaluation": {"panoptic segmentation": "COCOPanopticEvaluator", "rotated boxes": "RotatedCOCOEvaluator"},
    "layers": {
        "DeepLab's blocks": "ASPP DepthwiseSeparableConv2d",
        "deformable convolution": "DeformConv ModulatedDeformConv",
        "losses that torchvision.ops has": "ciou_loss diou_loss",
        "rotated boxes": "ROIAlignRotated batched_nms_rotated nms_rotated roi_align_rotated",
    },
    "modeling": {
        "panoptic segmentation": "PanopticFPN",
        "test-time augmentation": "DatasetMapperTTA GeneralizedRCNNWithTTA",
        "vision transformers": "MViT SimpleFeaturePyramid SwinTransformer ViT",
    },
    "modeling.roi_heads": {
        "cascades of box heads": "CascadeROIHeads",
        "keypoints": "BaseKeypointRCNNHead KRCNNConvDeconvUpsampleHead ROI_KEYPOINT_HEAD_REGISTRY build_keypoint_head",
    },
    "structures": {
        "anchor-free detection": "pairwise_point_box_distance",
        "keypoints": "Keypoints heatmaps_to_keypoints",
        "rotated boxes": "RotatedBoxes pairwise_iou_rotated",
    },
}


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
