"""The registry of backbones."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

from .backbone import Backbone

BACKBONE_REGISTRY = Registry("BACKBONE")
BACKBONE_REGISTRY.__doc__ = "Backbones by name; an entry is called with (cfg, input_shape) and returns a `Backbone`."


def build_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """Build the backbone that ``cfg.MODEL.BACKBONE.NAME`` names.

    Args:
        cfg: the whole configuration.
        input_shape: shape of the images; without it, one channel for each entry of ``cfg.MODEL.PIXEL_MEAN``.

    Raises:
        KeyError: no backbone has that name.
        TypeError: what was built is not a :class:`Backbone`.
    """
    name = cfg.MODEL.BACKBONE.NAME
    backbone = BACKBONE_REGISTRY.get(name)(cfg, input_shape or ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)))
    if not isinstance(backbone, Backbone):
        raise TypeError(f"MODEL.BACKBONE.NAME={name!r} built a {type(backbone).__name__}, which is no Backbone")
    return backbone
