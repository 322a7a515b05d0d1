"""Keys of classifiers and of what they classify."""

from detectron2.config import CfgNode as CN


def add_classifier_keys(cfg: CN) -> None:
    cfg.MODEL.IMAGE_CLASSIFIER = CN()
    # Classes of the meta-architectures "ImageClassifier" and "MultiPathClassifier".
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
    # Your own images: folders that hold one folder a class. When TRAIN is set, they become the data sets.
    cfg.CLASSIFICATION = CN()
    cfg.CLASSIFICATION.CUSTOM = CN({"TRAIN": "", "TEST": ""})


def add_tafe_net_keys(cfg: CN) -> None:
    # Read by the meta-architecture "TAFENet".
    cfg.MODEL.TAFE_NET = CN()
    # Output channels of the dynamic 3x3 convolutions, for features that are maps; [] for none.
    cfg.MODEL.TAFE_NET.CONV_CHANNELS = []
    # Widths of the dynamic linear layers; the last is that of the TAFE and of e_t.
    cfg.MODEL.TAFE_NET.FC_DIMS = [2048, 2048, 2048]
    # Hidden layers of the classifier, as in the authors' code; [] for the linear one of the thesis' text.
    cfg.MODEL.TAFE_NET.CLASSIFIER_DIMS = [2048]
    # Before the classifier.
    cfg.MODEL.TAFE_NET.DROPOUT = 0.5
    # Layers of the task embedding network (aPY: 2), and width of the hidden ones (AWA2 in the authors' code: 512).
    cfg.MODEL.TAFE_NET.TASK_LAYERS = 3
    cfg.MODEL.TAFE_NET.TASK_HIDDEN = 2048
    # "softmax" (calibrated loss, Eq. 5.6) or "bce" (the authors' code).
    cfg.MODEL.TAFE_NET.LOSS = "softmax"
    # beta of Eq. 5.8; 0 leaves the embedding loss out.
    cfg.MODEL.TAFE_NET.EMBEDDING_WEIGHT = 0.1
    # An image's own task counts as much as all others (the authors' code); False: Eq. 5.7.
    cfg.MODEL.TAFE_NET.EMBEDDING_BALANCE = True
    # Tasks of a training step: the classes of its "batch", or all "seen" ones.
    cfg.MODEL.TAFE_NET.TRAIN_TASKS = "batch"
    # "published", or "fan_in" for narrow networks.
    cfg.MODEL.TAFE_NET.INIT = "published"
    # The rate of the task embedding network, as a factor on that of the rest.
    cfg.SOLVER.TASK_LR_FACTOR = 1.0
    # "SGD" (Detectron2's) or "Adam", which does not read MOMENTUM.
    cfg.SOLVER.OPTIMIZER = "SGD"
    cfg.ZERO_SHOT = CN()
    # A json {"name": [numbers]} of classes to add to those of the data set, as candidates in evaluation.
    cfg.ZERO_SHOT.CLASSES = ""
    # Your own data: npz of training and test images (features, labels), json {"name": [numbers]} of their classes.
    # When they are set, they become the data sets.
    cfg.ZERO_SHOT.CUSTOM = CN({"TRAIN": "", "TEST": "", "CLASSES": ""})
