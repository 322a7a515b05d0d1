"""Keys of backbones that come from timm."""

from detectron2.config import CfgNode as CN


def add_timm_keys(cfg: CN) -> None:
    # Read by build_timm_backbone, build_timm_fpn_backbone, build_timm_retinanet_fpn_backbone and
    # build_gated_timm_backbone. Their features are named by stride: MODEL.RESNETS.OUT_FEATURES "res<k>" has stride 2^k.
    cfg.MODEL.TIMM = CN()
    # A model of timm, e.g. "tf_efficientnet_lite0" or "convnext_tiny.fb_in22k".
    cfg.MODEL.TIMM.NAME = ""
    # What it starts from: "" (random numbers), "pretrained" (the installed package that has its weights, else timm's
    # hub), or a file with timm's names (.pth or .safetensors).
    cfg.MODEL.TIMM.WEIGHTS = ""
    # What its batch norms become: "FrozenBN" (constants), "BN" or "SyncBN". Other norms stay as they are.
    cfg.MODEL.TIMM.NORM = "FrozenBN"
