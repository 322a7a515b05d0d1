"""Keys of instance segmentation where some objects have boxes only, and of RetinaMask."""

from detectron2.config import CfgNode as CN


def add_partial_mask_keys(cfg: CN) -> None:
    cfg.INPUT.PARTIAL_MASKS = CN()
    # Train on the masks of these classes only, by name; "voc" and "non-voc" stand for 20 and the other 60 of COCO.
    # [] for all classes. The boxes of all objects are used.
    cfg.INPUT.PARTIAL_MASKS.CLASSES = []
    # Train on the masks of this share of the images that have any.
    cfg.INPUT.PARTIAL_MASKS.FRACTION = 1.0
    # Which images these are.
    cfg.INPUT.PARTIAL_MASKS.SEED = 0
    # Masks for objects that have none: "none", "grabcut" (from box and colours), or the path of a json of predicted
    # masks.
    cfg.INPUT.PARTIAL_MASKS.PSEUDO = "none"
    # GrabCut: rounds of estimating colours and cutting, and how far around a box it looks, as a share of the sides.
    cfg.INPUT.PARTIAL_MASKS.GRABCUT = CN({"ITERATIONS": 5, "MARGIN": 0.5})
    # Folder in which GrabCut's masks are kept for later runs; "" for ~/.cache/dyn_d2/pseudo_masks.
    cfg.INPUT.PARTIAL_MASKS.CACHE = ""
    # Classes that the evaluation counts as those with masks, beside those without; [] for INPUT.PARTIAL_MASKS.CLASSES.
    cfg.TEST.MASKED_CLASSES = []


def add_retina_mask_keys(cfg: CN) -> None:
    cfg.MODEL.RETINA_MASK = CN()
    # Predictions of each image, the best after NMS, that the mask branch of the meta-architecture "RetinaMask" is
    # trained on beside the true boxes; MODEL.ROI_HEADS labels and samples them.
    cfg.MODEL.RETINA_MASK.PROPOSALS = 100
