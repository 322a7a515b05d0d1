"""The coarsest levels of feature pyramids, on any backbone."""

from collections.abc import Sequence

from dyn_d2.modeling.shapes import channels_of, stride_of

from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7


def pooled_level(bottom_up: Backbone, in_features: Sequence[str]) -> LastLevelMaxPool:
    """Faster and Mask R-CNN's coarsest level: every second pixel of the one before.

    Args:
        bottom_up: the backbone below the pyramid.
        in_features: what the pyramid is built on, fine to coarse.
    """
    top = LastLevelMaxPool()
    # Named after the coarsest level, which is "p5" only for backbones of stride 32.
    top.in_feature = f"p{stride_of(bottom_up.output_shape()[in_features[-1]]).bit_length() - 1}"
    return top


def convolved_levels(bottom_up: Backbone, in_features: Sequence[str], out_channels: int) -> LastLevelP6P7:
    """RetinaNet's two coarsest levels: convolutions of stride 2 on the coarsest feature of ``bottom_up``."""
    name = in_features[-1]
    return LastLevelP6P7(channels_of(bottom_up.output_shape()[name]), out_channels, name)
