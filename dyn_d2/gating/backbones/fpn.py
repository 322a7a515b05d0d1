"""Feature pyramids on gated backbones."""

from dyn_d2.config.applied import notices_keys
from dyn_d2.modeling.backbone.fpn import convolved_levels, pooled_level

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, Backbone


class GatedFPN(FPN):
    """Detectron2's FPN on a gated backbone."""

    skips_parameters = True


def _build(cfg: CfgNode, input_shape: ShapeSpec, top_block) -> GatedFPN:
    name = cfg.MODEL.GATED.BOTTOM_UP
    if name not in BACKBONE_REGISTRY:
        known = ", ".join(key for key, _ in BACKBONE_REGISTRY if key.startswith("build_gated") and "fpn" not in key)
        raise ValueError(f"MODEL.GATED.BOTTOM_UP is {name!r}: use one of {known}.")
    bottom_up: Backbone = BACKBONE_REGISTRY.get(name)(cfg, input_shape)
    fpn = cfg.MODEL.FPN
    square = getattr(bottom_up, "padding_constraints", {}).get("square_size", 0)
    return GatedFPN(
        bottom_up, fpn.IN_FEATURES, fpn.OUT_CHANNELS, fpn.NORM, top_block(bottom_up), fuse_type=fpn.FUSE_TYPE,
        square_pad=square,
    )  # fmt: skip


@BACKBONE_REGISTRY.register()
@notices_keys
def build_gated_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GatedFPN:
    """The pyramid of Faster and Mask R-CNN on the backbone MODEL.GATED.BOTTOM_UP: its levels and a pooled one."""
    return _build(cfg, input_shape, lambda bottom_up: pooled_level(bottom_up, cfg.MODEL.FPN.IN_FEATURES))


@BACKBONE_REGISTRY.register()
@notices_keys
def build_gated_retinanet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GatedFPN:
    """The pyramid of RetinaNet on the backbone MODEL.GATED.BOTTOM_UP: P6 and P7 from its coarsest feature."""
    fpn = cfg.MODEL.FPN
    return _build(cfg, input_shape, lambda bottom_up: convolved_levels(bottom_up, fpn.IN_FEATURES, fpn.OUT_CHANNELS))
