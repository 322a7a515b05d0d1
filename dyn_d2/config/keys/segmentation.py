"""Keys of semantic segmentation."""

from detectron2.config import CfgNode as CN


def add_segmentation_keys(cfg: CN) -> None:
    # Dilation of the 3x3 convolutions of res4, 1 or 2; 2 keeps the stride at 8 and wants RES5_DILATION 4 (DeepLab).
    cfg.MODEL.RESNETS.RES4_DILATION = 1
    # Training: resize by a random factor of this range, before the crop (INPUT.CROP); [] does not. In place of
    # INPUT.MIN_SIZE_TRAIN.
    cfg.INPUT.RANDOM_SCALE = []
    # Training: a batch holds images of one set of DATASETS.TRAIN, larger sets more often.
    cfg.DATALOADER.ONE_DATASET_PER_BATCH = False
