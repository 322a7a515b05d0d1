"""Keys of the cosine classifier."""

from detectron2.config import CfgNode as CN


def add_keys(cfg: CN) -> None:
    # alpha of Eq. 7.2, or its start value if it is learned.
    cfg.MODEL.ROI_BOX_HEAD.COSINE_SCALE = 20.0
    # Whether alpha is one more parameter.
    cfg.MODEL.ROI_BOX_HEAD.COSINE_SCALE_LEARNABLE = False
