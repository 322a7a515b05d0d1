"""Keys of the cosine classifier."""

from dyn_d2.config.rules import Rules, number

from detectron2.config import CfgNode as CN

RANGES: Rules = {"MODEL.ROI_BOX_HEAD.COSINE_SCALE": number(0, 1_000_000, above=True)}


def add_keys(cfg: CN) -> None:
    # alpha of Eq. 7.2, or its start value if it is learned.
    cfg.MODEL.ROI_BOX_HEAD.COSINE_SCALE = 20.0
    # Whether alpha is one more parameter.
    cfg.MODEL.ROI_BOX_HEAD.COSINE_SCALE_LEARNABLE = False
