"""Keys of features that are computed once."""

from detectron2.config import CfgNode as CN


def add_feature_cache_keys(cfg: CN) -> None:
    # Where backbone and proposal network of a detector are frozen (MODEL.FREEZE), their outputs for each image, size
    # and flip are computed once and kept: "off", "auto" (where that is possible) or "on" (an error where it is not).
    # Then each image is padded by itself, and a frozen proposal network has no losses. Of a gated classifier whose
    # blocks are frozen and whose policy reads only means of feature maps, these means are kept, for all images and
    # flips of the training set; they are computed before the first step.
    cfg.FEATURE_CACHE = CN()
    cfg.FEATURE_CACHE.MODE = "off"
    # What they may take on disk, in 10^9 bytes; beyond, those go that were not used for longest.
    cfg.FEATURE_CACHE.GB = 20.0
    # Where they are kept; runs may share it. "": feature_maps below OUTPUT_DIR.
    cfg.FEATURE_CACHE.DIR = ""
