"""Keys of YOLOv2, of re-weighting and of LSTD."""

from dyn_d2.config.applied import LOADER_KEYS
from dyn_d2.config.rules import (
    Rule,
    Rules,
    choice,
    each,
    empty,
    names,
    number,
    positive,
    positive_share,
    share,
    text,
    whole,
)

from detectron2.config import CfgNode as CN

_SIDE = Rule(
    lambda v: isinstance(v, int) and not isinstance(v, bool) and 32 <= v <= 8192 and v % 32 == 0,
    "a multiple of 32, from 32 to 8192",
)
RANGES: Rules = {
    "MODEL.DARKNET.WIDTH": number(0, 16, above=True),
    "MODEL.YOLO.SIZE": _SIDE,
    "MODEL.YOLO.TRAIN_SIZES": empty() | each(_SIDE),
    "MODEL.YOLO.IN_FEATURES": each(text(filled=True), 2, 2),
    "MODEL.YOLO.CACHE": text(),
    "MODEL.YOLO.CACHE_GB": number(0),
    "MODEL.YOLO.RAMP": empty() | each(whole(0), 2, 2, rising=True),
    "MODEL.YOLO.ANCHORS": each(each(number(0, 1000, above=True), 2, 2)),
    "MODEL.YOLO.OBJECT_SCALE": number(0),
    "MODEL.YOLO.IGNORE_IOU": share(),
    "MODEL.YOLO.PRIOR_ITERS": whole(0),
    "INPUT.JITTER.CROP": number(0, 1, below=True),
    "INPUT.JITTER.HUE": share(),
    "INPUT.JITTER.SATURATION": number(1, 1000),
    "INPUT.JITTER.EXPOSURE": number(1, 1000),
    "FEW_SHOT.YOLO.BASE_LR": number(0),
    "FEW_SHOT.YOLO.FINETUNE_LR": number(0),
    "FEW_SHOT.YOLO.WEIGHT_DECAY": number(),
    "MODEL.LSTD.BACKGROUND": number(0),
    "MODEL.LSTD.TRANSFER": number(0),
    "MODEL.LSTD.TEMPERATURE": positive(),
    "MODEL.LSTD.SOURCE_CLASSES": whole(0, 100_000),
    "MODEL.REWEIGHTING.LAYER": choice("conv13", "conv20", "conv22"),
    "MODEL.REWEIGHTING.NET": choice("pixels", "features"),
    "MODEL.REWEIGHTING.SHARE": positive_share(),
    "MODEL.REWEIGHTING.CLASS_LOSS": choice("softmax", "multi_binary", "single_binary"),
    "MODEL.REWEIGHTING.SUPPORT_FORM": choice("image", "image+mask", "image+object", "image+mask+object"),
    "MODEL.REWEIGHTING.SUPPORT_SIZE": whole(64, 8192),
    "MODEL.REWEIGHTING.WIDTH": number(0, 16, above=True),
    "MODEL.REWEIGHTING.NEGATIVES": number(),
    "MODEL.REWEIGHTING.FINETUNE_NEGATIVES": number(),
    "MODEL.REWEIGHTING.FINETUNE_DECAY": number(),
    "MODEL.REWEIGHTING.SUPPORTS": whole(1),
    "MODEL.REWEIGHTING.VECTORS": names(),
}


def add_keys(cfg: CN) -> None:
    _add_yolo_keys(cfg)
    _add_reweighting_keys(cfg)


def _add_yolo_keys(cfg: CN) -> None:
    # Read by build_darknet19_backbone and the detection layers on it.
    cfg.MODEL.DARKNET = CN()
    # Factor of all numbers of channels, also of the detection layers on any other backbone.
    cfg.MODEL.DARKNET.WIDTH = 1.0
    # "BN", "FrozenBN", "GN", ... or ""; likewise.
    cfg.MODEL.DARKNET.NORM = "BN"
    # Read by the meta-architectures "YOLOv2", "LSTDYOLOv2" and "FSRW"; the number of classes is RETINANET.NUM_CLASSES.
    cfg.MODEL.YOLO = CN()
    # The backbone's features of stride 16 and 32.
    cfg.MODEL.YOLO.IN_FEATURES = ["conv13", "conv18"]
    # A folder that keeps the features of a frozen backbone, for this training and others with the same one, ...
    cfg.MODEL.YOLO.CACHE = ""
    # ... and how many gigabytes it may take.
    cfg.MODEL.YOLO.CACHE_GB = 4.0
    # Side of the square that images are squashed to, a multiple of 32.
    cfg.MODEL.YOLO.SIZE = 416
    # Training: sides to draw from for each batch; [] for SIZE ...
    cfg.MODEL.YOLO.TRAIN_SIZES = []
    # ... and two iterations: up to the first only SIZE is used, from then on more and more of them, from the second on
    # all; [] for all of them from the start. Scaled to the batch as the schedule is.
    cfg.MODEL.YOLO.RAMP = []
    # Widths and heights, in cells of 32 pixels.
    cfg.MODEL.YOLO.ANCHORS = [
        [1.3221, 1.73145], [3.19275, 4.00944], [5.05587, 8.09892], [9.47112, 4.84053], [11.2364, 10.0071]
    ]  # fmt: skip
    # Weight of the objectness of an anchor that has an object.
    cfg.MODEL.YOLO.OBJECT_SCALE = 5.0
    # An anchor whose box overlaps an object by more than this is no negative.
    cfg.MODEL.YOLO.IGNORE_IOU = 0.6
    # In so many first iterations of a base training, anchors without an object learn to predict themselves. Scaled to
    # the batch as the schedule is.
    cfg.MODEL.YOLO.PRIOR_ITERS = 200
    cfg.MODEL.YOLO.SCORE_THRESH_TEST = 0.005
    cfg.MODEL.YOLO.NMS_THRESH_TEST = 0.45
    # Colour and place of training images, queries and supports, in the manner of DarkNet: each side of the crop moves
    # by up to CROP of the image's, inwards or outwards, where it is black; the hue by up to HUE of the circle;
    # saturation and exposure (value) are multiplied or divided by up to these factors. 0, 0, 1, 1 change nothing.
    cfg.INPUT.JITTER = CN({"CROP": 0.0, "HUE": 0.0, "SATURATION": 1.0, "EXPOSURE": 1.0})
    LOADER_KEYS["INPUT.JITTER"] = cfg.INPUT.JITTER.clone()

    # Rate and weight decay of the plain YOLOv2s (FEW_SHOT.METHOD yolo_* and lstd*), where they are not those of SOLVER
    # and FEW_SHOT.FINETUNE, which are FSRW's. Rates of 0 and a negative decay: as there. FINETUNE_LR 0: BASE_LR.
    cfg.FEW_SHOT.YOLO = CN({"BASE_LR": 0.0, "FINETUNE_LR": 0.0, "WEIGHT_DECAY": -1.0})
    # LSTD on YOLOv2: weights of background depression and of transfer knowledge, the temperature of the latter, and the
    # number of classes of the base model where it comes from another data set (0: the benchmark's base classes).
    cfg.MODEL.LSTD = CN({"BACKGROUND": 0.5, "TRANSFER": 0.5, "TEMPERATURE": 2.0, "SOURCE_CLASSES": 0})


def _add_reweighting_keys(cfg: CN) -> None:
    # Read by the meta-architectures "FSRW" and "MetaRCNN".
    cfg.MODEL.REWEIGHTING = CN()
    # FSRW: which features are re-weighted, "conv13", "conv20" or "conv22" (Table 6.4, which counts the last as 21) ...
    cfg.MODEL.REWEIGHTING.LAYER = "conv22"
    # ... and which share of their channels.
    cfg.MODEL.REWEIGHTING.SHARE = 1.0
    # FSRW: "softmax" (Eq. 6.3), "multi_binary" or "single_binary" (Table 6.5).
    cfg.MODEL.REWEIGHTING.CLASS_LOSS = "softmax"
    # FSRW: whether the re-weighting module looks at the "pixels" of a support image or at the backbone's "features".
    cfg.MODEL.REWEIGHTING.NET = "pixels"
    # What the re-weighting module sees: "image", "image+mask", "image+object" or "image+mask+object" (Table 6.6).
    cfg.MODEL.REWEIGHTING.SUPPORT_FORM = "image+mask"
    # Side of the square that support images are squashed to, 64 or more.
    cfg.MODEL.REWEIGHTING.SUPPORT_SIZE = 416
    # Factor of the numbers of channels of the module's first five convolutions, and its normalisation.
    cfg.MODEL.REWEIGHTING.WIDTH = 1.0
    cfg.MODEL.REWEIGHTING.NORM = "BN"
    # FSRW: how many (image, class) pairs without an object count, for each pair with one, in the losses of boxes and
    # objectness; negative for all. In base training, and in fine-tuning.
    cfg.MODEL.REWEIGHTING.NEGATIVES = 1.0
    cfg.MODEL.REWEIGHTING.FINETUNE_NEGATIVES = 0.0
    # FSRW: the weight decay of fine-tuning; negative for that of SOLVER.
    cfg.MODEL.REWEIGHTING.FINETUNE_DECAY = -1.0
    # Evaluation: a class vector is the mean over so many support images at most, of those of the training set.
    cfg.MODEL.REWEIGHTING.SUPPORTS = 100
    # Evaluation: files of class vectors (dyn-d2 vectors export) in place of the module.
    cfg.MODEL.REWEIGHTING.VECTORS = []
