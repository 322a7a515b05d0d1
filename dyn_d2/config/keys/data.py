"""Keys of one's own data sets, whatever the task."""

from dyn_d2.config.applied import LOADER_KEYS

from detectron2.config import CfgNode as CN


def add_data_keys(cfg: CN) -> None:
    # Modules to import first, such as ones that register data sets in Python: names, or paths of .py files.
    cfg.DATASETS.IMPORT = []
    # Data sets to choose on (SOLVER.BEST): neither trained on nor reported.
    cfg.DATASETS.VAL = []
    # Your own data, without Python. When FORMAT is set, they become DATASETS.TRAIN, VAL and TEST, under the names
    # NAME_train, NAME_val and NAME_test, and class counts follow from them.
    cfg.DATASETS.CUSTOM = CN()
    cfg.DATASETS.CUSTOM.NAME = "custom"
    # "" (off), "coco" (json and images), "voc" (JPEGImages, Annotations, ImageSets/Main), "yolo" (images, a txt each),
    # "semantic" (images, label maps) or "folders" (one folder a class).
    cfg.DATASETS.CUSTOM.FORMAT = ""
    # Where the paths below start; "" for the working directory. The folder itself of "voc" and of "yolo".
    cfg.DATASETS.CUSTOM.ROOT = ""
    # coco: a json. voc: a list of ImageSets/Main ("": trainval, val, test). yolo: a folder of images or a list of them
    # ("": as data.yaml says). semantic: a folder of label maps. folders: a folder of one folder a class.
    cfg.DATASETS.CUSTOM.TRAIN = ""
    cfg.DATASETS.CUSTOM.VAL = ""
    cfg.DATASETS.CUSTOM.TEST = ""
    # coco and semantic: the folders of the images.
    cfg.DATASETS.CUSTOM.TRAIN_IMAGES = ""
    cfg.DATASETS.CUSTOM.VAL_IMAGES = ""
    cfg.DATASETS.CUSTOM.TEST_IMAGES = ""
    # Names of the classes, in the order of their numbers. Needed by "semantic" without a tree, and by "yolo" without
    # data.yaml or classes.txt; the other formats name them.
    cfg.DATASETS.CUSTOM.CLASSES = []
    # In place of VAL: this share of the training images is held out, as NAME_train_held_out.
    cfg.DATASETS.CUSTOM.HOLD_OUT = 0.0
    # semantic: the value of pixels that do not count.
    cfg.DATASETS.CUSTOM.IGNORE = 255
    # semantic: a concept tree, by name or as a yaml file, and which of its data sets has these labels ("": the only
    # one whose labels are CLASSES). The content of the file replaces its name, so that checkpoints have it.
    cfg.DATASETS.CUSTOM.TREE = ""
    cfg.DATASETS.CUSTOM.LABEL_SET = ""
    # Training: changes of pixels by albumentations (an extra), e.g. ["GaussianBlur(p=0.2)", "RandomGamma(p=0.5)"].
    # None that moves pixels. Read for images with objects or label maps, and for classification.
    cfg.INPUT.ALBUMENTATIONS = []
    LOADER_KEYS["INPUT.ALBUMENTATIONS"] = []
