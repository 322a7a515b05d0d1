"""Every config key that dyn_d2 adds to Detectron2's, with its default and what it does."""

from detectron2.config import CfgNode as CN


def add_dyn_d2_config(cfg: CN) -> None:
    """Add the keys of dyn_d2 to ``cfg``; every tool calls it right after ``get_cfg()``."""
    _add_detector_keys(cfg)
    _add_few_shot_keys(cfg)
    _add_run_keys(cfg)
    _add_classifier_keys(cfg)
    _add_classification_keys(cfg)
    _add_stage_keys(cfg)
    _add_gated_keys(cfg)
    _add_policy_keys(cfg)
    _add_skipnet_keys(cfg)
    _add_deepmoe_keys(cfg)
    _add_cdb_keys(cfg)
    _add_pmn_keys(cfg)
    _add_baseline_policy_keys(cfg)
    _add_multipath_keys(cfg)
    _add_shapeprop_keys(cfg)
    _add_retina_mask_keys(cfg)
    _add_layer_cascade_keys(cfg)
    _add_segmentation_keys(cfg)
    _add_dsspn_keys(cfg)
    _add_yolo_keys(cfg)
    _add_reweighting_keys(cfg)
    _add_tafe_net_keys(cfg)


def _stage_solver() -> CN:
    # What one stage has of its own; 0, [], -1 and "" mean as in SOLVER.
    return CN({"BASE_LR": 0.0, "MAX_ITER": 0, "STEPS": [], "WARMUP_ITERS": -1, "LR_SCHEDULER_NAME": ""})


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
    # freeze and which classifier they use; the rows of Tables 7.1 to 7.6. "fsrw", "yolo_joint", "yolo_ft",
    # "yolo_ft_full", "lstd" or "lstd_full" (Table 6.1) and "meta_rcnn" choose MODEL.META_ARCHITECTURE as well.
    cfg.FEW_SHOT.METHOD = ""
    # "" (the keys of SOLVER, FEW_SHOT.FINETUNE and FEW_SHOT.NOVEL) or "thesis": rate and iterations that the thesis
    # used for this benchmark, stage and K, from engine/schedules.py.
    cfg.FEW_SHOT.SCHEDULE = ""
    # SOLVER keys of the fine-tuning stage, so that one yaml serves all stages.
    cfg.FEW_SHOT.FINETUNE = _stage_solver()
    # What methods that fine-tune until nothing changes any more (yolo_ft_full, lstd_full) have other than FINETUNE.
    cfg.FEW_SHOT.FULL = _stage_solver()
    # The same for the base stage, for a command line that changes its length and not that of the stages after it.
    cfg.FEW_SHOT.BASE = _stage_solver()
    # The same for the novel-only stage.
    cfg.FEW_SHOT.NOVEL = _stage_solver()
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


def _add_gated_keys(cfg: CN) -> None:
    cfg.MODEL.GATED = CN()
    # What can be switched off: "block" (SkipNet), "group" (CDB) or "channel" (DeepMoE).
    cfg.MODEL.GATED.UNIT = "block"
    # Whether the first block of the first stage of a ResNet is a unit too (PMN, BlockDrop); SkipNet always runs it.
    cfg.MODEL.GATED.FIRST_BLOCK = False
    # Bottleneck block of DeepMoE: "A" gates the outputs of its 1x1 and 3x3 convolution, "B" that of the 3x3 one.
    cfg.MODEL.GATED.BOTTLENECK = "A"
    # How many times as many gated channels as the plain network DeepMoE has: 1 is "narrow", 2 "wide".
    cfg.MODEL.GATED.WIDEN = 1.0
    # Which convolutions of VGG16 that widens: "W1-High", "W1-Mid", "W4-Low" or "W13-All", the rows of Table 3.4.
    cfg.MODEL.GATED.WIDEN_LAYERS = "W13-All"
    # N of CDB: groups of a block.
    cfg.MODEL.GATED.GROUPS = 2
    # Backbone below build_gated_fpn_backbone and build_gated_retinanet_fpn_backbone.
    cfg.MODEL.GATED.BOTTOM_UP = "build_gated_resnet_backbone"
    # Width of MobileNetV2, 1.0 or 1.4.
    cfg.MODEL.GATED.WIDTH_MULT = 1.0


def _add_classifier_keys(cfg: CN) -> None:
    cfg.MODEL.IMAGE_CLASSIFIER = CN()
    # Classes of the meta-architectures "ImageClassifier" and "MultiPathClassifier".
    cfg.MODEL.IMAGE_CLASSIFIER.NUM_CLASSES = 10
    # Which feature map of the backbone it classifies; "" for the last.
    cfg.MODEL.IMAGE_CLASSIFIER.IN_FEATURE = ""


def _add_classification_keys(cfg: CN) -> None:
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


def _add_stage_keys(cfg: CN) -> None:
    # SOLVER keys of every training stage of a policy after its first (MODEL.POLICY.STAGE), so that one yaml serves all.
    cfg.SOLVER.SECOND_STAGE = _stage_solver()
    # The rate of the policy's parameters, as a factor on that of the others.
    cfg.SOLVER.GATE_LR_FACTOR = 1.0
    # The weight decay of the policy's parameters; negative: as the others.
    cfg.SOLVER.GATE_WEIGHT_DECAY = -1.0


def _add_policy_keys(cfg: CN) -> None:
    cfg.MODEL.POLICY = CN()
    # What decides: "all_open" (the plain network), "skipnet_ffgate1", "skipnet_ffgate2", "skipnet_rnn", "deepmoe",
    # "cdb", "convnet_aig", "pmn", "blockdrop", "random_skip" or "fixed"; of a multi-path network "path_actor",
    # "path_critic" or "path_optimistic_critic".
    cfg.MODEL.POLICY.NAME = "all_open"
    # Stage of its training: "sp" or "hrl" of SkipNet, "joint" or "finetune" of DeepMoE, "pretrain" or "joint" of PMN
    # and BlockDrop; "" for the first.
    cfg.MODEL.POLICY.STAGE = ""
    # SkipNet, ConvNet-AIG, CDB, BlockDrop: what the probability of a unit has to exceed to run in evaluation; SkipNet's
    # stage "sp" trains with it too. PMN: what q has to exceed for an image to go on.
    cfg.MODEL.POLICY.THRESHOLD = 0.5
    # Of the sigmoid of SkipNet's gates and of the Gumbel soft-max of ConvNet-AIG.
    cfg.MODEL.POLICY.TEMPERATURE = 1.0
    # Share to run, in (0, 1]: r and e of CDB, t of ConvNet-AIG, of units for random_skip and fixed.
    cfg.MODEL.POLICY.TARGET_RATE = 0.7


def _add_skipnet_keys(cfg: CN) -> None:
    cfg.MODEL.POLICY.SKIPNET = CN()
    # Stage "sp": "hard" (rounded, gradient of the probability, Eq. 2.7) or "soft" (the probability, Table 2.3).
    cfg.MODEL.POLICY.SKIPNET.RELAXATION = "hard"
    # alpha of Eq. 2.5: what skipping is worth against the loss, in stage "hrl".
    cfg.MODEL.POLICY.SKIPNET.ALPHA = 0.1
    # beta, weight of the loss in the return; 0: alpha / N (the thesis' relaxed reward), 1: as Eq. 2.5 has it.
    cfg.MODEL.POLICY.SKIPNET.BETA = 0.0
    # Weight of the REINFORCE term.
    cfg.MODEL.POLICY.SKIPNET.WEIGHT = 0.01
    # Subtracted from the return: "none" or "self_critical" (the return of the greedy path, at a second forward pass).
    cfg.MODEL.POLICY.SKIPNET.BASELINE = "none"
    # The last layer of the gates is divided by it once, when stage "hrl" starts; 0.05 in the authors' ImageNet code.
    cfg.MODEL.POLICY.SKIPNET.HRL_TEMPERATURE = 1.0
    # Logit of new gates; positive: blocks run at the start, as pre-trained weights expect.
    cfg.MODEL.POLICY.SKIPNET.INIT_BIAS = 0.0


def _add_deepmoe_keys(cfg: CN) -> None:
    cfg.MODEL.POLICY.DEEPMOE = CN()
    # Layers of the embedding network: 4 for CIFAR, 5 for ImageNet.
    cfg.MODEL.POLICY.DEEPMOE.LAYERS = 4
    # Width of the embedding.
    cfg.MODEL.POLICY.DEEPMOE.WIDTH = 128
    # lambda of Eq. 3.7, weight of the sum of all gates.
    cfg.MODEL.POLICY.DEEPMOE.LAMBDA = 0.001
    # mu of Eq. 3.7, weight of the classification loss of the embedding; 0 for tasks without image labels.
    cfg.MODEL.POLICY.DEEPMOE.MU = 0.0
    # In evaluation, gates up to this value are closed as well.
    cfg.MODEL.POLICY.DEEPMOE.THRESHOLD = 0.0


def _add_cdb_keys(cfg: CN) -> None:
    cfg.MODEL.POLICY.CDB = CN()
    # d, width of the controllers.
    cfg.MODEL.POLICY.CDB.WIDTH = 32
    # Controllers hear of the one before them (Eq. 6; "CA" of Table 5).
    cfg.MODEL.POLICY.CDB.CONTEXT = True
    # Controllers learn to tell categories apart (Eq. 7; "CS" of Table 5); needs image labels.
    cfg.MODEL.POLICY.CDB.CATEGORY = True
    # Category of each class, from 0; [] for superclass_of of the training set's metadata, else each class its own.
    cfg.MODEL.POLICY.CDB.CATEGORIES = []
    # alpha_l of Eq. 8 for each stage; stages after the last use the last.
    cfg.MODEL.POLICY.CDB.CATEGORY_WEIGHTS = [0.0001, 0.001, 0.01, 0.1]
    # Standard deviation of the noise of Eq. 9.
    cfg.MODEL.POLICY.CDB.NOISE = 1.0
    # alpha_2 of Eq. 15, weight of the execution and FLOPs losses.
    cfg.MODEL.POLICY.CDB.RESOURCE_WEIGHT = 1.0


def _add_pmn_keys(cfg: CN) -> None:
    cfg.MODEL.POLICY.PMN = CN()
    # The concept tree: name of a shipped one or a yaml file; "" for one level above all classes.
    cfg.MODEL.POLICY.PMN.TREE = ""
    # Data set of the tree whose labels are the classes; "" for the name of the tree.
    cfg.MODEL.POLICY.PMN.LABELS = ""
    # What is decided: "levels" (PMN), "modules" ("Policy-adaptive" of Table 1), "stop" ("Policy"), or nothing: "fixed",
    # "random" or "distribute".
    cfg.MODEL.POLICY.PMN.ACTIONS = "levels"
    # Modules that the last three run; 0 for all.
    cfg.MODEL.POLICY.PMN.MODULES = 0
    # Stages, from the end, whose blocks are modules: 2 in segmentation, 0 (all) in classification.
    cfg.MODEL.POLICY.PMN.STAGES = 0
    # How many steps down the tree the graph search looks (Table 4: 1).
    cfg.MODEL.POLICY.PMN.HOPS = 2
    # Later modules may take levels that were taken before (Table 4: "w/o overlap").
    cfg.MODEL.POLICY.PMN.OVERLAP = True
    # beta of Eq. 6 for classes outside of the levels that a module took; 1.0 is "w/o weighting" of Table 4.
    cfg.MODEL.POLICY.PMN.OFF_LEVEL_WEIGHT = 0.8
    # What beta multiplies: "logits" (the formula) or "probabilities".
    cfg.MODEL.POLICY.PMN.WEIGH = "logits"
    # Width of the LSTM and of its input.
    cfg.MODEL.POLICY.PMN.WIDTH = 512
    # alpha of Eq. 12 for levels, and of Eq. 11 for going on. With 0.8 for the latter, a sampled path is longer than k
    # modules with probability 0.8^k at most.
    cfg.MODEL.POLICY.PMN.ALPHA = 0.8
    cfg.MODEL.POLICY.PMN.STOP_ALPHA = 0.8
    # lambda of Eq. 7: what stopping early is worth against accuracy.
    cfg.MODEL.POLICY.PMN.LAMBDA = 0.5
    # Weight of the policy gradient.
    cfg.MODEL.POLICY.PMN.WEIGHT = 1.0
    # Which predictions the network learns from: the "sampled" ones, or "both" (the greedy ones too).
    cfg.MODEL.POLICY.PMN.TRAIN_ON = "sampled"
    # Logit of going on, at the start.
    cfg.MODEL.POLICY.PMN.INIT_BIAS = 0.0
    # Rates of the atrous convolutions of PMNHead.
    cfg.MODEL.SEM_SEG_HEAD.ASPP_RATES = [6, 12, 18, 24]

    cfg.MODEL.POLICY.BLOCKDROP = CN()
    # Bounds the probabilities that are sampled from.
    cfg.MODEL.POLICY.BLOCKDROP.ALPHA = 0.8
    # gamma, the negative reward of a wrong answer; 5 or 10 in the authors' code.
    cfg.MODEL.POLICY.BLOCKDROP.PENALTY = 5.0
    # Weight of the policy gradient.
    cfg.MODEL.POLICY.BLOCKDROP.WEIGHT = 1.0
    # Logit of new probabilities.
    cfg.MODEL.POLICY.BLOCKDROP.INIT_BIAS = 0.0
    # The first ITERS steps of stage "joint" decide about more and more blocks, from the last one on, with a gamma and a
    # weight of the entropy of their own.
    cfg.MODEL.POLICY.BLOCKDROP.CURRICULUM = CN({"ITERS": 0, "PENALTY": 1.0, "ENTROPY": 0.1})


def _add_baseline_policy_keys(cfg: CN) -> None:
    # ConvNet-AIG.
    cfg.MODEL.POLICY.AIG = CN()
    # t of each block; [] for TARGET_RATE.
    cfg.MODEL.POLICY.AIG.TARGET_RATES = []
    # Width of the gates' hidden layer.
    cfg.MODEL.POLICY.AIG.WIDTH = 16
    # Weight of the rate loss.
    cfg.MODEL.POLICY.AIG.LOSS_WEIGHT = 1.0

    # How the rate changes with depth: "constant" or "linear"; TARGET_RATE is the mean of both.
    cfg.MODEL.POLICY.RANDOM = CN({"SCHEDULE": "constant"})

    cfg.MODEL.POLICY.FIXED = CN()
    # Names of units to close, "*" and "?" allowed; [] closes by TARGET_RATE.
    cfg.MODEL.POLICY.FIXED.CLOSED = []
    # Which are closed by TARGET_RATE: "last" or "even" (evenly spread).
    cfg.MODEL.POLICY.FIXED.ORDER = "last"


def _add_multipath_keys(cfg: CN) -> None:
    # "Deciding How to Decide": read by build_multipath_backbone and the meta-architecture "MultiPathClassifier".
    cfg.MODEL.MULTIPATH = CN()
    # "chain" (after each layer an exit and the next one), "tree" (the first levels have an exit and two copies of what
    # follows), or "static" (a chain whose only exit is at its end: the baseline, with MODEL.POLICY.NAME all_open).
    cfg.MODEL.MULTIPATH.TOPOLOGY = "chain"
    # Levels of a tree that split in two.
    cfg.MODEL.MULTIPATH.SPLITS = 3
    # Levels of layers; 0 for as many as there are CHANNELS.
    cfg.MODEL.MULTIPATH.DEPTH = 0
    # Side of the finest scale, in pixels; each further one is half as large.
    cfg.MODEL.MULTIPATH.SIDE = 32
    # Of the layers of each level: how many scales, and channels of each scale.
    cfg.MODEL.MULTIPATH.SCALES = [4, 4, 3, 3, 2, 2, 1, 1]
    cfg.MODEL.MULTIPATH.CHANNELS = [16, 16, 32, 32, 64, 64, 128, 128]
    # k_l2, weight of the squared weights, which are counted by the share of images that use them. Takes the place of
    # SOLVER.WEIGHT_DECAY.
    cfg.MODEL.MULTIPATH.WEIGHT_PENALTY = 0.0001
    # Multiply the gradients of each part by 1 / sqrt(mean p^2): the throughput-adjusted learning rate (TALR).
    cfg.MODEL.MULTIPATH.ADJUST_RATES = True
    cfg.MODEL.POLICY.PATHS = CN()
    # Widths of the hidden layers of a router.
    cfg.MODEL.POLICY.PATHS.WIDTHS = [16, 16]
    # tau at the start; 0 for 1 (actor) or 0.1 (critics).
    cfg.MODEL.POLICY.PATHS.TEMPERATURE = 0.0
    # Iterations in which tau is halved.
    cfg.MODEL.POLICY.PATHS.HALVING = 20000
    # k_cpt, what a multiply-add costs: 0 to 6.4e-8 in the authors' code.
    cfg.MODEL.POLICY.PATHS.COMPUTE_WEIGHT = 1e-8
    # k_dec of the actor: keeps scores small, decisions soft.
    cfg.MODEL.POLICY.PATHS.DECISION_WEIGHT = 0.01
    # k_cre of the critics: weight of their regression.
    cfg.MODEL.POLICY.PATHS.REGRESSION_WEIGHT = 0.001
    # Critics regress wrong answers (0 or 1) in place of the cross entropy.
    cfg.MODEL.POLICY.PATHS.CLASS_ERROR = False
    # For SOLVER.LR_SCHEDULER_NAME "HalvingLR": iterations in which the rate is halved, continuously.
    cfg.SOLVER.HALVING_ITERS = 10000


def _add_shapeprop_keys(cfg: CN) -> None:
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


def _add_retina_mask_keys(cfg: CN) -> None:
    cfg.MODEL.RETINA_MASK = CN()
    # Predictions of each image, the best after NMS, that the mask branch of the meta-architecture "RetinaMask" is
    # trained on beside the true boxes; MODEL.ROI_HEADS labels and samples them.
    cfg.MODEL.RETINA_MASK.PROPOSALS = 100


def _add_layer_cascade_keys(cfg: CN) -> None:
    # Read by the semantic head "LayerCascadeHead" over build_cascade_..._backbone.
    cfg.MODEL.LAYER_CASCADE = CN()
    # rho, in evaluation: pixels whose confidence exceeds it are final. A value for each stage but the last, or one for
    # all of them; at 1 all pixels pass all stages.
    cfg.MODEL.LAYER_CASCADE.THRESHOLDS = [0.985]
    # The same in training; at 1 it is deep supervision, the paper's initial training.
    cfg.MODEL.LAYER_CASCADE.TRAIN_THRESHOLDS = [0.985]
    # Iterations of initial training, in which all pixels pass all stages, before TRAIN_THRESHOLDS hold.
    cfg.MODEL.LAYER_CASCADE.INITIAL_ITERS = 0
    # Factors of the losses of the stages.
    cfg.MODEL.LAYER_CASCADE.STAGE_WEIGHTS = [1.0, 1.0, 1.0]
    # Dilations of 3x3 convolutions whose sum is the hidden layer of the last classifier (ASPP); [] for one without.
    cfg.MODEL.LAYER_CASCADE.ASPP = []
    # IRNet, for build_cascade_inception_resnet_backbone.
    cfg.MODEL.INCEPTION_RESNET = CN()
    # How many A, B and C blocks: 5, 10, 5 in the paper; the published weights are of 10, 20, 10.
    cfg.MODEL.INCEPTION_RESNET.BLOCKS = [5, 10, 5]
    # "BN", "FrozenBN" or "".
    cfg.MODEL.INCEPTION_RESNET.NORM = "FrozenBN"


def _add_segmentation_keys(cfg: CN) -> None:
    # Dilation of the 3x3 convolutions of res4, 1 or 2; 2 keeps the stride at 8 and wants RES5_DILATION 4 (DeepLab).
    cfg.MODEL.RESNETS.RES4_DILATION = 1
    # Training: resize by a random factor of this range, before the crop (INPUT.CROP); [] does not. In place of
    # INPUT.MIN_SIZE_TRAIN.
    cfg.INPUT.RANDOM_SCALE = []
    # Training: a batch holds images of one set of DATASETS.TRAIN, larger sets more often (DSSPN, sec. 3.4).
    cfg.DATALOADER.ONE_DATASET_PER_BATCH = False
    # For SOLVER.LR_SCHEDULER_NAME "WarmupPolyLR": rate * (1 - iteration / MAX_ITER) ** POLY_LR_POWER, ...
    cfg.SOLVER.POLY_LR_POWER = 0.9
    # ... but not below this share of the rate.
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0
    # The rate of the backbone, gates not counted, as a factor on that of the rest.
    cfg.SOLVER.BACKBONE_LR_FACTOR = 1.0


def _add_dsspn_keys(cfg: CN) -> None:
    # Read by the semantic head "DSSPNHead".
    cfg.MODEL.DSSPN = CN()
    # The concept tree: a name (tools/show_hierarchy.py lists them) or a yaml file.
    cfg.MODEL.DSSPN.TREE = "universal"
    # k, width of a neuron.
    cfg.MODEL.DSSPN.WIDTH = 48
    # Channels of a neuron's 1x1 convolution (its number is lost in our copy of the paper).
    cfg.MODEL.DSSPN.BOTTLENECK = 256
    # k_0, width of the transition (lost too; with 256 it alone would be larger than the whole head of Table 6).
    cfg.MODEL.DSSPN.TRANSITION_CHANNELS = 128
    # Dilations of the transition.
    cfg.MODEL.DSSPN.RATES = [6, 12, 18]
    # What a neuron inherits: "concat" (dense block), "sum" (of its ancestors) or "parent" (no dense block).
    cfg.MODEL.DSSPN.BLOCK = "concat"
    # Run the neurons that an image needs only; False: all of them, everywhere ("fixed structure" of Table 5).
    cfg.MODEL.DSSPN.DYNAMIC = True
    # "bce" (each child by itself) or "softmax" (siblings compete).
    cfg.MODEL.DSSPN.LOSS = "bce"
    # Leave the children that a data set does not define out of its losses (sec. 3.4).
    cfg.MODEL.DSSPN.CONCEPT_MASKING = True
    # Pixels outside of a neuron's concept: "ignore", or "negative" for all of its children.
    cfg.MODEL.DSSPN.OUTSIDE = "ignore"
    # Divide the sum of the losses by the labelled positions of the batch ("position"), or the loss of each neuron by
    # the positions that it learns from ("neuron": small regions count as much as large ones).
    cfg.MODEL.DSSPN.LOSS_AVERAGE = "position"


def _add_yolo_keys(cfg: CN) -> None:
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

    # LSTD on YOLOv2: weights of background depression and of transfer knowledge, and the temperature of the latter.
    cfg.MODEL.LSTD = CN({"BACKGROUND": 0.5, "TRANSFER": 0.5, "TEMPERATURE": 2.0})


def _add_reweighting_keys(cfg: CN) -> None:
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


def _add_tafe_net_keys(cfg: CN) -> None:
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
