"""Keys of ShapeProp, and of the mask head of Mask^X R-CNN."""

from dyn_d2.config.rules import CHANNELS, Rules, choice, number, whole

from detectron2.config import CfgNode as CN

RANGES: Rules = {
    "MODEL.ROI_MASK_HEAD.TRANSFER_FROM": choice("cls", "box", "cls+box"),
    "MODEL.SHAPE_PROP.INTEGRATION": choice("encoding", "activation", "none"),
    "MODEL.SHAPE_PROP.LATENT_CHANNELS": whole(1, CHANNELS),
    "MODEL.SHAPE_PROP.WINDOW": choice(*range(1, 16, 2)),
    "MODEL.SHAPE_PROP.STEPS": whole(0, 1000),
    "MODEL.SHAPE_PROP.NORMALIZE": choice("random_walk", "symmetric"),
    "MODEL.SHAPE_PROP.SALIENCY_WEIGHT": number(0),
    "MODEL.SHAPE_PROP.SHAPE_WEIGHT": number(0),
}


def add_keys(cfg: CN) -> None:
    # Which weights of a class the mask head "WeightTransferMaskHead" (Mask^X R-CNN) makes the class's mask predictor
    # from: "cls", "box" or "cls+box".
    cfg.MODEL.ROI_MASK_HEAD.TRANSFER_FROM = "cls+box"
    # Read by the ROI heads "ShapePropROIHeads" and "ShapePropMaskROIHeads".
    cfg.MODEL.SHAPE_PROP = CN()
    # Learn saliency from boxes (Eq. 8.1 to 8.3); False: from masks only.
    cfg.MODEL.SHAPE_PROP.MIL = True
    # Propagate it (Eq. 8.4); False: the saliency itself is the shape activation.
    cfg.MODEL.SHAPE_PROP.PROPAGATION = True
    # What the mask head gets beside the region: "encoding" or "activation" (of the shape), or "none".
    cfg.MODEL.SHAPE_PROP.INTEGRATION = "encoding"
    # C of W, the channels in which messages are passed.
    cfg.MODEL.SHAPE_PROP.LATENT_CHANNELS = 24
    # r, odd: messages come from r x r neighbours.
    cfg.MODEL.SHAPE_PROP.WINDOW = 3
    # T; 0 for the side of a region.
    cfg.MODEL.SHAPE_PROP.STEPS = 0
    # Of the weights of a location: "random_walk" (they sum to 1) or "symmetric".
    cfg.MODEL.SHAPE_PROP.NORMALIZE = "random_walk"
    # The same weights for all latent channels ("Channel-agnostic" of Table 8.4).
    cfg.MODEL.SHAPE_PROP.CHANNEL_AGNOSTIC = False
    # Saliency and propagation weights from the same convolutions.
    cfg.MODEL.SHAPE_PROP.SHARE_FEATURES = False
    # Depth, width and normalisation ("", "GN", ...) of the stacks of 3x3 convolutions.
    cfg.MODEL.SHAPE_PROP.NUM_CONV = 4
    cfg.MODEL.SHAPE_PROP.CONV_DIM = 256
    cfg.MODEL.SHAPE_PROP.NORM = ""
    # Factors of the losses on saliency and shape activation.
    cfg.MODEL.SHAPE_PROP.SALIENCY_WEIGHT = 1.0
    cfg.MODEL.SHAPE_PROP.SHAPE_WEIGHT = 1.0
    # Evaluate also the masks of the true boxes, so that what the detector finds does not matter.
    cfg.TEST.MASKS_IN_TRUE_BOXES = False
    # Detections carry saliency and shape activation, for pictures and for measuring them.
    cfg.MODEL.SHAPE_PROP.OUTPUT_MAPS = False
