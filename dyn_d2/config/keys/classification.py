"""Keys of classifiers and of what they classify."""

from dyn_d2.config.applied import LOADER_KEYS

from detectron2.config import CfgNode as CN


def add_classifier_keys(cfg: CN) -> None:
    cfg.MODEL.IMAGE_CLASSIFIER = CN()
    # Classes of the meta-architecture "ImageClassifier" and others that give an image one label.
    cfg.MODEL.IMAGE_CLASSIFIER.NUM_CLASSES = 10
    # Which feature map of the backbone it classifies; "" for the last.
    cfg.MODEL.IMAGE_CLASSIFIER.IN_FEATURE = ""


def add_classification_keys(cfg: CN) -> None:
    # Images that a process evaluates at a time; 1 is the usual for timing.
    cfg.TEST.IMS_PER_BATCH = 1
    cfg.INPUT.CLASSIFICATION = CN()
    # The keys below, MODEL.PIXEL_MEAN and PIXEL_STD: "auto" (what is usual for the training set), "" (as given), or
    # "cifar10", "cifar100", "svhn", "imagenet", "digits". Values on the command line are left alone.
    cfg.INPUT.CLASSIFICATION.RECIPE = "auto"
    # Training: put so many black pixels on each side and cut out a window of the old size.
    cfg.INPUT.CLASSIFICATION.PAD_CROP = 0
    # Training: cut out a random window and resize it to a square of this size; 0 does not.
    cfg.INPUT.CLASSIFICATION.RANDOM_RESIZED_CROP = 0
    # Smallest and largest area of that window, as a share of the image's.
    cfg.INPUT.CLASSIFICATION.SCALE = [0.08, 1.0]
    # Training: mirror every other image.
    cfg.INPUT.CLASSIFICATION.FLIP = False
    # Training: change brightness, contrast and saturation by up to this share, e.g. 0.4.
    cfg.INPUT.CLASSIFICATION.COLOR = 0.0
    # Evaluation: resize the shorter side to this length; 0 does not.
    cfg.INPUT.CLASSIFICATION.RESIZE_TEST = 0
    # Evaluation: cut a square of this size out of the middle; 0 does not.
    cfg.INPUT.CLASSIFICATION.CROP_TEST = 0
    LOADER_KEYS["INPUT.CLASSIFICATION"] = cfg.INPUT.CLASSIFICATION.clone()
    # Your own images: folders that hold one folder a class. When TRAIN is set, they become the data sets.
    cfg.CLASSIFICATION = CN()
    cfg.CLASSIFICATION.CUSTOM = CN({"TRAIN": "", "TEST": ""})
