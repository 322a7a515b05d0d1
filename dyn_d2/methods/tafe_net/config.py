"""Keys of TAFE-Net and of its data."""

from dyn_d2.config.applied import OPTIMIZER_KEYS
from dyn_d2.config.rules import CHANNELS, Rules, choice, each, flag, names, number, whole

from detectron2.config import CfgNode as CN

RANGES: Rules = {
    "MODEL.TAFE_NET.CONV_CHANNELS": each(whole(1, CHANNELS), 0),
    "MODEL.TAFE_NET.FC_DIMS": each(whole(1, CHANNELS)),
    "MODEL.TAFE_NET.CLASSIFIER_DIMS": each(whole(1, CHANNELS), 0),
    "MODEL.TAFE_NET.DROPOUT": number(0, 1, below=True),
    "MODEL.TAFE_NET.TASK_LAYERS": whole(1, 1000),
    "MODEL.TAFE_NET.TASK_HIDDEN": whole(1, CHANNELS),
    "MODEL.TAFE_NET.LOSS": choice("softmax", "bce"),
    "MODEL.TAFE_NET.EMBEDDING_WEIGHT": number(0),
    "MODEL.TAFE_NET.TRAIN_TASKS": choice("batch", "seen"),
    "MODEL.TAFE_NET.INIT": choice("published", "fan_in"),
    "SOLVER.TASK_LR_FACTOR": number(0),
    "ZERO_SHOT.CUSTOM.UNSEEN": names(),
    "ZERO_SHOT.CUSTOM.STANDARDISE": flag(),
    "ZERO_SHOT.CUSTOM.FOLD": whole(0, 1000),
    "ZERO_SHOT.CUSTOM.FOLDS": whole(2, 1000),
    "ZERO_SHOT.CUSTOM.SHOTS": whole(1, 100_000),
    "ZERO_SHOT.CUSTOM.DRAW": whole(0),
    "ZERO_SHOT.BALANCE": flag(),
    "ZERO_SHOT.SEEN_PENALTY": number(),
}
OPTIMIZER_KEYS["SOLVER.TASK_LR_FACTOR"] = 1.0


def add_keys(cfg: CN) -> None:
    # Read by the meta-architecture "TAFENet".
    cfg.MODEL.TAFE_NET = CN()
    # Output channels of the dynamic 3x3 convolutions, for features that are maps; [] for none.
    cfg.MODEL.TAFE_NET.CONV_CHANNELS = []
    # Widths of the dynamic linear layers; the last is that of the TAFE and of e_t.
    cfg.MODEL.TAFE_NET.FC_DIMS = [2048, 2048, 2048]
    # Hidden layers of the classifier, as in the authors' code; [] for the linear one of the text of Wang 2020.
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
    cfg.ZERO_SHOT = CN()
    # A json {"name": [numbers]} of classes to add to those of the data set, as candidates in evaluation.
    cfg.ZERO_SHOT.CLASSES = ""
    # Your own data: npz of training and test images (features, labels), json {"name": [numbers]} of their classes.
    # When they are set, they become the data sets.
    cfg.ZERO_SHOT.CUSTOM = CN({"TRAIN": "", "TEST": "", "CLASSES": ""})
    # Classes whose training images are left out, so that their description is all that is known of them.
    cfg.ZERO_SHOT.CUSTOM.UNSEEN = []
    # Features get the mean 0 and the standard deviation 1 of the training images.
    cfg.ZERO_SHOT.CUSTOM.STANDARDISE = False
    # To choose settings: k of FOLDS leaves every FOLDS-th seen class out and tests on training images that are held
    # out; 0 trains on all of them and tests on TEST.
    cfg.ZERO_SHOT.CUSTOM.FOLD = 0
    cfg.ZERO_SHOT.CUSTOM.FOLDS = 3
    # Without CLASSES: an unseen class is described by so many of its training images; another DRAW draws others.
    cfg.ZERO_SHOT.CUSTOM.SHOTS = 1
    cfg.ZERO_SHOT.CUSTOM.DRAW = 0
    # Each training image is of a class that is drawn, all seen ones with equal chance; else images as they come.
    cfg.ZERO_SHOT.BALANCE = False
    # Subtracted from the scores of classes with training images where all classes are possible answers: calibrated
    # stacking, gamma of Chao et al. (ECCV 2016).
    cfg.ZERO_SHOT.SEEN_PENALTY = 0.0
