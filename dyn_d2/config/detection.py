"""Keys of detectors: few-shot learning, masks of few objects, YOLOv2 and re-weighting."""

from detectron2.config import CfgNode as CN

from .training import stage_solver


def add_detector_keys(cfg: CN) -> None:
    # Parts that must not change, e.g. ["backbone", "proposal_generator", "roi_heads.box_head"]: paths of modules,
    # "*" allowed. Parameters get no gradient, batch norm and dropout layers stay in evaluation mode.
    cfg.MODEL.FREEZE = []
    # "linear" or "cosine" (TFA, Eq. 7.2). Read by the ROI heads "DynROIHeads" and "DynRes5ROIHeads".
    cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER = "linear"
    # alpha of Eq. 7.2, or its start value if it is learned.
    cfg.MODEL.ROI_BOX_HEAD.COSINE_SCALE = 20.0
    # Whether alpha is one more parameter.
    cfg.MODEL.ROI_BOX_HEAD.COSINE_SCALE_LEARNABLE = False


def add_few_shot_keys(cfg: CN) -> None:
    cfg.FEW_SHOT = CN()
    # "" (off), "voc", "coco", "lvis", "digit_scenes" or "custom". When set, data sets and class counts are derived.
    cfg.FEW_SHOT.BENCHMARK = ""
    # "gfsod": fine-tune and detect base and novel classes; "fsod": novel classes only.
    cfg.FEW_SHOT.PROTOCOL = "gfsod"
    # "base", "novel" (novel-only predictor, for INIT "novel"), "finetune", "joint" (all data of all classes), or
    # "joint_shots" (all data of the base classes and K shots of the novel ones: "FRCN+joint" of Table 7.1).
    cfg.FEW_SHOT.STAGE = "base"
    # "" (MODEL.FREEZE and CLASSIFIER as given), "ft", "ft_full", "tfa_fc" or "tfa_cos": what the fine-tuning stages
    # freeze and which classifier they use; the rows of Tables 7.1 to 7.6. "fsrw", "yolo_joint", "yolo_ft",
    # "yolo_ft_full", "lstd" or "lstd_full" (Table 6.1) and "meta_rcnn" choose MODEL.META_ARCHITECTURE as well.
    cfg.FEW_SHOT.METHOD = ""
    # "" (the keys of SOLVER, FEW_SHOT.FINETUNE and FEW_SHOT.NOVEL) or "thesis": rate and iterations that the thesis
    # used for this benchmark, stage and K, from engine/schedules.py.
    cfg.FEW_SHOT.SCHEDULE = ""
    # SOLVER keys of the fine-tuning stage, so that one yaml serves all stages.
    cfg.FEW_SHOT.FINETUNE = stage_solver()
    # What methods that fine-tune until nothing changes any more (yolo_ft_full, lstd_full) have other than FINETUNE.
    cfg.FEW_SHOT.FULL = stage_solver()
    # The same for the base stage, for a command line that changes its length and not that of the stages after it.
    cfg.FEW_SHOT.BASE = stage_solver()
    # The same for the novel-only stage.
    cfg.FEW_SHOT.NOVEL = stage_solver()
    # Which division into base and novel classes, from 1.
    cfg.FEW_SHOT.SPLIT = 1
    # K: annotated objects of each class in the fine-tuning set; 0: all objects of the stage's classes.
    cfg.FEW_SHOT.SHOTS = 10
    # "instance": K counts objects; "image": K images with all objects of the class that they show.
    cfg.FEW_SHOT.SHOTS_UNIT = "instance"
    # Which sample of K shots.
    cfg.FEW_SHOT.SEED = 0
    # "random" or "novel": how the novel rows of the predictor start (surgery between the stages).
    cfg.FEW_SHOT.INIT = "random"
    # False: one training record for each sampled object (the paper's data); True: one for each image.
    cfg.FEW_SHOT.GROUP_BY_IMAGE = False
    # Folder of K-shot lists, sampled by datasets/prepare_*_few_shot.py or published ones; "" draws them by the seed.
    cfg.FEW_SHOT.SHOTS_DIR = ""
    # Registered data sets to use in place of the benchmark's, e.g. ["coco_2017_train"]; [] keeps the benchmark's.
    cfg.FEW_SHOT.TRAIN_SETS = []
    cfg.FEW_SHOT.TEST_SETS = []
    # Your own data in COCO format, for BENCHMARK "custom".
    cfg.FEW_SHOT.CUSTOM = CN()
    cfg.FEW_SHOT.CUSTOM.NAME = "custom"
    cfg.FEW_SHOT.CUSTOM.TRAIN_JSON = ""
    cfg.FEW_SHOT.CUSTOM.TRAIN_IMAGES = ""
    cfg.FEW_SHOT.CUSTOM.TEST_JSON = ""
    cfg.FEW_SHOT.CUSTOM.TEST_IMAGES = ""
    cfg.FEW_SHOT.CUSTOM.BASE_CLASSES = []
    cfg.FEW_SHOT.CUSTOM.NOVEL_CLASSES = []


def add_shapeprop_keys(cfg: CN) -> None:
    cfg.INPUT.PARTIAL_MASKS = CN()
    # Train on the masks of these classes only, by name; "voc" and "non-voc" stand for 20 and the other 60 of COCO.
    # [] for all classes. The boxes of all objects are used.
    cfg.INPUT.PARTIAL_MASKS.CLASSES = []
    # Train on the masks of this share of the images that have any.
    cfg.INPUT.PARTIAL_MASKS.FRACTION = 1.0
    # Which images these are.
    cfg.INPUT.PARTIAL_MASKS.SEED = 0
    # Masks for objects that have none: "none", "grabcut" (from box and colours), or the path of a json of predicted
    # masks, which tools/pseudo_masks.py writes.
    cfg.INPUT.PARTIAL_MASKS.PSEUDO = "none"
    # GrabCut: rounds of estimating colours and cutting, and how far around a box it looks, as a share of the sides.
    cfg.INPUT.PARTIAL_MASKS.GRABCUT = CN({"ITERATIONS": 5, "MARGIN": 0.5})
    # Folder in which GrabCut's masks are kept for later runs; "" for ~/.cache/dyn_d2/pseudo_masks.
    cfg.INPUT.PARTIAL_MASKS.CACHE = ""
    # Classes that the evaluation counts as those with masks, beside those without; [] for INPUT.PARTIAL_MASKS.CLASSES.
    cfg.TEST.MASKED_CLASSES = []
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
    # Detections carry saliency and shape activation, for pictures and for measuring them.
    cfg.MODEL.SHAPE_PROP.OUTPUT_MAPS = False


def add_retina_mask_keys(cfg: CN) -> None:
    cfg.MODEL.RETINA_MASK = CN()
    # Predictions of each image, the best after NMS, that the mask branch of the meta-architecture "RetinaMask" is
    # trained on beside the true boxes; MODEL.ROI_HEADS labels and samples them.
    cfg.MODEL.RETINA_MASK.PROPOSALS = 100


def add_yolo_keys(cfg: CN) -> None:
    # Read by build_darknet19_backbone and the detection layers on it.
    cfg.MODEL.DARKNET = CN()
    # Factor of all numbers of channels.
    cfg.MODEL.DARKNET.WIDTH = 1.0
    # "BN", "FrozenBN", "GN", ... or "".
    cfg.MODEL.DARKNET.NORM = "BN"
    # Read by the meta-architectures "YOLOv2", "LSTDYOLOv2" and "FSRW"; the number of classes is RETINANET.NUM_CLASSES.
    cfg.MODEL.YOLO = CN()
    # Side of the square that images are squashed to, a multiple of 32.
    cfg.MODEL.YOLO.SIZE = 416
    # Training: sides to draw from for each batch; [] for SIZE.
    cfg.MODEL.YOLO.TRAIN_SIZES = []
    # Widths and heights, in cells of 32 pixels.
    cfg.MODEL.YOLO.ANCHORS = [
        [1.3221, 1.73145], [3.19275, 4.00944], [5.05587, 8.09892], [9.47112, 4.84053], [11.2364, 10.0071]
    ]  # fmt: skip
    # Weight of the objectness of an anchor that has an object.
    cfg.MODEL.YOLO.OBJECT_SCALE = 5.0
    # An anchor whose box overlaps an object by more than this is no negative.
    cfg.MODEL.YOLO.IGNORE_IOU = 0.6
    # In so many first iterations of a base training, anchors without an object learn to predict themselves.
    cfg.MODEL.YOLO.PRIOR_ITERS = 200
    cfg.MODEL.YOLO.SCORE_THRESH_TEST = 0.005
    cfg.MODEL.YOLO.NMS_THRESH_TEST = 0.45
    # Colour and place of training images, queries and supports, in the manner of DarkNet: each side of the crop moves
    # by up to CROP of the image's; the hue by up to HUE of the circle; saturation and exposure (value) are multiplied
    # or divided by up to these factors. 0, 0, 1, 1 change nothing.
    cfg.INPUT.JITTER = CN({"CROP": 0.0, "HUE": 0.0, "SATURATION": 1.0, "EXPOSURE": 1.0})

    # LSTD on YOLOv2: weights of background depression and of transfer knowledge, the temperature of the latter, and the
    # number of classes of the base model where it comes from another data set (0: the benchmark's base classes).
    cfg.MODEL.LSTD = CN({"BACKGROUND": 0.5, "TRANSFER": 0.5, "TEMPERATURE": 2.0, "SOURCE_CLASSES": 0})


def add_reweighting_keys(cfg: CN) -> None:
    # Read by the meta-architectures "FSRW" and "MetaRCNN".
    cfg.MODEL.REWEIGHTING = CN()
    # FSRW: which features are re-weighted, "conv13", "conv20" or "conv22" (Table 6.4, which counts the last as 21) ...
    cfg.MODEL.REWEIGHTING.LAYER = "conv22"
    # ... and which share of their channels.
    cfg.MODEL.REWEIGHTING.SHARE = 1.0
    # FSRW: "softmax" (Eq. 6.3), "multi_binary" or "single_binary" (Table 6.5).
    cfg.MODEL.REWEIGHTING.CLASS_LOSS = "softmax"
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
    # Evaluation: a class vector is the mean over so many support images at most, of those of the training set.
    cfg.MODEL.REWEIGHTING.SUPPORTS = 100
    # Evaluation: files of class vectors (tools/export_vectors.py) in place of the module.
    cfg.MODEL.REWEIGHTING.VECTORS = []
