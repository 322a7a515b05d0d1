"""Every config key that dyn_d2 adds to Detectron2's, with its default and what it does."""

from detectron2.config import CfgNode as CN


def add_dyn_d2_config(cfg: CN) -> None:
    """Add the keys of dyn_d2 to ``cfg``; every tool calls it right after ``get_cfg()``."""
    _add_detector_keys(cfg)
    _add_few_shot_keys(cfg)
    _add_run_keys(cfg)


def _add_detector_keys(cfg: CN) -> None:
    # Parts that must not change, e.g. ["backbone", "proposal_generator", "roi_heads.box_head"]: paths of modules,
    # "*" allowed. Parameters get no gradient, batch norm and dropout layers stay in evaluation mode.
    cfg.MODEL.FREEZE = []
    # "linear" or "cosine" (TFA, Eq. 7.2). Read by the ROI heads "DynROIHeads" and "DynRes5ROIHeads".
    cfg.MODEL.ROI_BOX_HEAD.CLASSIFIER = "linear"
    # alpha of Eq. 7.2, or its start value if it is learned.
    cfg.MODEL.ROI_BOX_HEAD.COSINE_SCALE = 20.0
    # Whether alpha is one more parameter.
    cfg.MODEL.ROI_BOX_HEAD.COSINE_SCALE_LEARNABLE = False


def _add_few_shot_keys(cfg: CN) -> None:
    cfg.FEW_SHOT = CN()
    # "" (off), "voc", "coco", "lvis", "digit_scenes" or "custom". When set, data sets and class counts are derived.
    cfg.FEW_SHOT.BENCHMARK = ""
    # "gfsod": fine-tune and detect base and novel classes; "fsod": novel classes only.
    cfg.FEW_SHOT.PROTOCOL = "gfsod"
    # "base", "novel" (novel-only predictor, for INIT "novel"), "finetune", "joint" (all data of all classes), or
    # "joint_shots" (all data of the base classes and K shots of the novel ones: "FRCN+joint" of Table 7.1).
    cfg.FEW_SHOT.STAGE = "base"
    # "" (MODEL.FREEZE and CLASSIFIER as given), "ft", "ft_full", "tfa_fc" or "tfa_cos": what the fine-tuning stages
    # freeze and which classifier they use; the rows of Tables 7.1 to 7.6.
    cfg.FEW_SHOT.METHOD = ""
    # "" (the keys of SOLVER, FEW_SHOT.FINETUNE and FEW_SHOT.NOVEL) or "thesis": rate and iterations that the thesis
    # used for this benchmark, stage and K, from engine/schedules.py.
    cfg.FEW_SHOT.SCHEDULE = ""
    # SOLVER keys of the fine-tuning stage, so that one yaml serves all stages; 0, [] and -1 mean as in SOLVER.
    cfg.FEW_SHOT.FINETUNE = CN({"BASE_LR": 0.0, "MAX_ITER": 0, "STEPS": [], "WARMUP_ITERS": -1})
    # The same for the base stage, for a command line that changes its length and not that of the stages after it.
    cfg.FEW_SHOT.BASE = CN({"BASE_LR": 0.0, "MAX_ITER": 0, "STEPS": [], "WARMUP_ITERS": -1})
    # The same for the novel-only stage.
    cfg.FEW_SHOT.NOVEL = CN({"BASE_LR": 0.0, "MAX_ITER": 0, "STEPS": [], "WARMUP_ITERS": -1})
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


def _add_run_keys(cfg: CN) -> None:
    # Keep feature maps with the channels last in memory: often faster, on CPUs and with tensor cores.
    cfg.MODEL.CHANNELS_LAST = False
    # The batch for which rate and schedule were chosen; 0 where nobody knows (no scaling then).
    cfg.SOLVER.REFERENCE_BATCH = 0
    # Scale rate, steps, warm-up and iterations when IMS_PER_BATCH differs from REFERENCE_BATCH.
    cfg.SOLVER.AUTO_SCALE = True
    # Let DDP look for parameters without a gradient; models that skip blocks ask for it themselves.
    cfg.SOLVER.FIND_UNUSED_PARAMETERS = False
    # Check data, checkpoint and head against each other, and try the evaluation on two images, before the first step.
    cfg.SOLVER.PREFLIGHT = True
    # Let --eval-only score a model although the checkpoint does not hold all of its parameters.
    cfg.TEST.ALLOW_PARTIAL_WEIGHTS = False
