"""Keys of detectors, and of few-shot detection."""

from detectron2.config import CfgNode as CN

from .training import stage_solver


def add_detector_keys(cfg: CN) -> None:
    # Parts that must not change, e.g. ["backbone", "proposal_generator", "roi_heads.box_head"]: paths of modules,
    # "*" allowed. Parameters get no gradient, batch norm and dropout layers stay in evaluation mode.
    cfg.MODEL.FREEZE = []
    # "linear", or that of a method, such as "cosine". Read by the ROI heads "DynROIHeads" and "DynRes5ROIHeads".
    cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER = "linear"


def add_few_shot_keys(cfg: CN) -> None:
    cfg.FEW_SHOT = CN()
    # "" (off), "voc", "coco", "lvis", "digit_scenes" or "custom". When set, data sets and class counts are derived.
    cfg.FEW_SHOT.BENCHMARK = ""
    # "gfsod": fine-tune and detect base and novel classes; "fsod": novel classes only.
    cfg.FEW_SHOT.PROTOCOL = "gfsod"
    # "base", "novel" (novel-only predictor, for INIT "novel"), "finetune", "joint" (all data of all classes), or
    # "joint_shots" (all data of the base classes and K shots of the novel ones: "FRCN+joint" of Wang et al., ICML
    # 2020).
    cfg.FEW_SHOT.STAGE = "base"
    # "" (MODEL.FREEZE and CLASSIFIER as given), "ft", "ft_full" or one that a method brings (dyn_d2/methods): what the
    # fine-tuning stages freeze, which classifier they use, and, for some, which MODEL.META_ARCHITECTURE.
    cfg.FEW_SHOT.METHOD = ""
    # "" (the keys of SOLVER, FEW_SHOT.BASE, NOVEL and FINETUNE) or "thesis": rate and iterations published for this
    # benchmark, stage and K (engine/schedules.py); the keys of the stage fill in what was not published.
    cfg.FEW_SHOT.SCHEDULE = ""
    # SOLVER keys of the fine-tuning stage, so that one yaml serves all stages. On the command line keys of a stage win
    # over those of SOLVER, keys of SOLVER over the yaml's, and none of them is scaled to the batch.
    cfg.FEW_SHOT.FINETUNE = stage_solver()
    # Iterations of the fine-tuning stage for each of the K shots, in place of FINETUNE.MAX_ITER: the published lengths
    # for VOC are 4,000 K. 0: not by K.
    cfg.FEW_SHOT.ITERS_PER_SHOT = 0
    # What methods that fine-tune until nothing changes any more have other than FINETUNE.
    cfg.FEW_SHOT.FULL = stage_solver()
    # The same for the base stage, for a command line that changes its length and not that of the stages after it.
    cfg.FEW_SHOT.BASE = stage_solver()
    # The same for the novel-only stage.
    cfg.FEW_SHOT.NOVEL = stage_solver()
    # Which division into base and novel classes, from 1.
    cfg.FEW_SHOT.SPLIT = 1
    # K: annotated objects of each class in the fine-tuning set; 0: all objects of the stage's classes.
    cfg.FEW_SHOT.SHOTS = 10
    # "instance": K counts objects; "image": K images with all objects of the class that they show;
    # "whole_image": K images for each class with the objects of all classes of the stage, which no object of them is
    # background for (GROUP_BY_IMAGE then holds): what somebody has who labelled a few images.
    cfg.FEW_SHOT.SHOTS_UNIT = "instance"
    # 0: K objects of each class are drawn, and what else their images show is background. n: images with at most n
    # objects are drawn and all of these used, until each class has exactly K (Kang et al., ICCV 2019, whose n is 3).
    cfg.FEW_SHOT.MAX_OBJECTS = 0
    # Which sample of K shots.
    cfg.FEW_SHOT.SEED = 0
    # "random" or "novel": how the novel rows of the predictor start (surgery between the stages).
    cfg.FEW_SHOT.INIT = "random"
    # False: one training record for each sampled object (the paper's data); True: one for each image.
    cfg.FEW_SHOT.GROUP_BY_IMAGE = False
    # Base stage of data that state how frequent a class is (LVIS), as published: frequent and common classes as two
    # data sets, so that an image with objects of both comes twice, each time with those of one kind.
    cfg.FEW_SHOT.FREQUENCIES_APART = False
    # Folder of K-shot lists, sampled by `dyn-d2 prepare few-shot` or published ones; "" draws them by the seed.
    cfg.FEW_SHOT.SHOTS_DIR = ""
    # Where only the box predictor learns, the features of images are computed once and kept: "auto" where
    # that is possible, "on" (an error where it is not), or "off". Training gives the same numbers each way; evaluation
    # from kept features, which have 16 bits, differs in last digits.
    cfg.FEW_SHOT.CACHE = "auto"
    # What they may take on disk, in 10^9 bytes; beyond, those go that were not used for longest.
    cfg.FEW_SHOT.CACHE_GB = 10.0
    # Where they are kept; runs and machines may share it. "": feature_cache below OUTPUT_DIR, shared by all stages.
    cfg.FEW_SHOT.CACHE_DIR = ""
    # Registered data sets to use in place of the benchmark's, e.g. ["coco_2017_train"]; [] keeps the benchmark's.
    cfg.FEW_SHOT.TRAIN_SETS = []
    cfg.FEW_SHOT.TEST_SETS = []
    # Your own data, COCO jsons or a VOC folder, for BENCHMARK "custom".
    cfg.FEW_SHOT.CUSTOM = CN()
    cfg.FEW_SHOT.CUSTOM.NAME = "custom"
    cfg.FEW_SHOT.CUSTOM.TRAIN_JSON = ""
    cfg.FEW_SHOT.CUSTOM.TRAIN_IMAGES = ""
    cfg.FEW_SHOT.CUSTOM.TEST_JSON = ""
    cfg.FEW_SHOT.CUSTOM.TEST_IMAGES = ""
    # In place of jsons: a folder with JPEGImages, Annotations and ImageSets/Main, and the names of two of its lists.
    cfg.FEW_SHOT.CUSTOM.VOC_FOLDER = ""
    cfg.FEW_SHOT.CUSTOM.VOC_TRAIN = "trainval"
    cfg.FEW_SHOT.CUSTOM.VOC_TEST = "test"
    cfg.FEW_SHOT.CUSTOM.BASE_CLASSES = []
    cfg.FEW_SHOT.CUSTOM.NOVEL_CLASSES = []
