"""Every config key and its default, as in Detectron2 0.6.

Keys of parts that this engine leaves out (keypoints, panoptic, test-time augmentation, ...) are here too, so that yaml
files of other projects load; a part that is left out complains when it is asked for. Projects add keys of their own
with a function ``add_PROJECT_config(cfg)``. ``*_TRAIN`` and ``*_TEST`` mark values that differ between the two modes.
"""

from .config import CfgNode

# How boxes are cut out of feature maps; the same in all heads.
_POOLER = {
    "POOLER_RESOLUTION": 14,  # cells along each side of the cut-out
    "POOLER_SAMPLING_RATIO": 0,  # samples along each side of a cell; 0: as many as it has pixels
    "POOLER_TYPE": "ROIAlignV2",  # ROIAlignV2 (pixel centres at half integers) or ROIAlign
}

_MODEL = {
    "META_ARCHITECTURE": "GeneralizedRCNN",
    "DEVICE": "cuda",
    "WEIGHTS": "",  # path or address of the checkpoint to start from; "" starts from scratch
    "PIXEL_MEAN": [103.530, 116.280, 123.675],  # in the order of INPUT.FORMAT; its length is the number of channels
    "PIXEL_STD": [1.0, 1.0, 1.0],  # 1: the MSRA weights have the scale in their first layer
    "MASK_ON": False,
    "KEYPOINT_ON": False,
    "LOAD_PROPOSALS": False,  # read proposals from DATASETS.PROPOSAL_FILES_*
    "BACKBONE": {
        "NAME": "build_resnet_backbone",
        "FREEZE_AT": 2,  # stages that do not learn, counted with the stem as 1; 0: none
    },
    "RESNETS": {
        "DEPTH": 50,
        "OUT_FEATURES": ["res4"],
        "NUM_GROUPS": 1,  # with WIDTH_PER_GROUP: ResNeXt
        "WIDTH_PER_GROUP": 64,
        "NORM": "FrozenBN",
        "STRIDE_IN_1X1": True,  # MSRA's weights have the stride there; torchvision's and ResNeXt's in the 3x3
        "RES5_DILATION": 1,  # 2 keeps the resolution of res4 in res5
        "RES2_OUT_CHANNELS": 256,  # 64 for depth 18 and 34
        "STEM_OUT_CHANNELS": 64,
        "DEFORM_ON_PER_STAGE": [False] * 4,  # res2 to res5
        "DEFORM_MODULATED": False,
        "DEFORM_NUM_GROUPS": 1,
    },
    "FPN": {
        "IN_FEATURES": [],
        "OUT_CHANNELS": 256,
        "NORM": "",
        "FUSE_TYPE": "sum",  # or "avg"
    },
    "ANCHOR_GENERATOR": {
        "NAME": "DefaultAnchorGenerator",
        "SIZES": [[32, 64, 128, 256, 512]],  # pixels (root of the area), one list per feature map or one for all
        "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],  # height / width, one list per feature map or one for all
        "ANGLES": [[-90, 0, 90]],  # degrees, of rotated anchors
        "OFFSET": 0.0,  # of the first anchor's centre, in strides
    },
    "PROPOSAL_GENERATOR": {
        "NAME": "RPN",  # RPN or PrecomputedProposals
        "MIN_SIZE": 0,  # pixels; smaller proposals are dropped
    },
    "RPN": {
        "HEAD_NAME": "StandardRPNHead",
        "IN_FEATURES": ["res4"],
        "CONV_DIMS": [-1],  # hidden convs of the head; -1: as many channels as come in
        "BOUNDARY_THRESH": -1,  # pixels that training anchors may reach out of the image; -1: any
        "IOU_THRESHOLDS": [0.3, 0.7],  # borders between the labels below
        "IOU_LABELS": [0, -1, 1],  # background, ignored, foreground
        "BATCH_SIZE_PER_IMAGE": 256,  # anchors that count in the loss
        "POSITIVE_FRACTION": 0.5,  # at most so many of them foreground
        "BBOX_REG_LOSS_TYPE": "smooth_l1",  # smooth_l1, giou, diou, ciou
        "BBOX_REG_LOSS_WEIGHT": 1.0,
        "BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),  # of dx, dy, dw, dh
        "SMOOTH_L1_BETA": 0.0,  # 0: plain L1
        "LOSS_WEIGHT": 1.0,
        "PRE_NMS_TOPK_TRAIN": 12000,  # per feature map
        "PRE_NMS_TOPK_TEST": 6000,
        "POST_NMS_TOPK_TRAIN": 2000,  # per image, over all feature maps
        "POST_NMS_TOPK_TEST": 1000,
        "NMS_THRESH": 0.7,
    },
    "ROI_HEADS": {
        "NAME": "Res5ROIHeads",
        "NUM_CLASSES": 80,  # without background
        "IN_FEATURES": ["res4"],
        "IOU_THRESHOLDS": [0.5],
        "IOU_LABELS": [0, 1],
        "BATCH_SIZE_PER_IMAGE": 512,  # boxes that count in the loss
        "POSITIVE_FRACTION": 0.25,
        "PROPOSAL_APPEND_GT": True,  # true boxes join the proposals in training
        "SCORE_THRESH_TEST": 0.05,
        "NMS_THRESH_TEST": 0.5,
    },
    "ROI_BOX_HEAD": {
        "NAME": "",  # FastRCNNConvFCHead for StandardROIHeads
        **_POOLER,
        "NUM_CONV": 0,
        "CONV_DIM": 256,
        "NUM_FC": 0,
        "FC_DIM": 1024,
        "NORM": "",
        "CLS_AGNOSTIC_BBOX_REG": False,  # one box for all classes
        "BBOX_REG_LOSS_TYPE": "smooth_l1",  # smooth_l1, giou, diou, ciou
        "BBOX_REG_LOSS_WEIGHT": 1.0,
        "BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
        "SMOOTH_L1_BETA": 0.0,
        "TRAIN_ON_PRED_BOXES": False,  # the mask head trains on the box head's output
        "USE_SIGMOID_CE": False,  # independent classes, as in federated data sets
        "USE_FED_LOSS": False,  # needs USE_SIGMOID_CE
        "FED_LOSS_FREQ_WEIGHT_POWER": 0.5,
        "FED_LOSS_NUM_CLASSES": 50,
    },
    "ROI_BOX_CASCADE_HEAD": {
        "BBOX_REG_WEIGHTS": ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)),
        "IOUS": (0.5, 0.6, 0.7),
    },
    "ROI_MASK_HEAD": {
        "NAME": "MaskRCNNConvUpsampleHead",
        **_POOLER,
        "NUM_CONV": 0,
        "CONV_DIM": 256,
        "NORM": "",
        "CLS_AGNOSTIC_MASK": False,
    },
    "ROI_KEYPOINT_HEAD": {
        "NAME": "KRCNNConvDeconvUpsampleHead",
        **_POOLER,
        "CONV_DIMS": (512,) * 8,
        "NUM_KEYPOINTS": 17,
        "MIN_KEYPOINTS_PER_IMAGE": 1,
        "NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS": True,
        "LOSS_WEIGHT": 1.0,
    },
    "SEM_SEG_HEAD": {
        "NAME": "SemSegFPNHead",
        "IN_FEATURES": ["p2", "p3", "p4", "p5"],
        "IGNORE_VALUE": 255,  # pixels with this label do not count
        "NUM_CLASSES": 54,  # 53 stuff classes of COCO and one for all things
        "CONVS_DIM": 128,
        "COMMON_STRIDE": 4,  # pixels per cell of the output
        "NORM": "GN",
        "LOSS_WEIGHT": 1.0,
    },
    "PANOPTIC_FPN": {
        "INSTANCE_LOSS_WEIGHT": 1.0,
        "COMBINE": {
            "ENABLED": True,
            "OVERLAP_THRESH": 0.5,
            "STUFF_AREA_LIMIT": 4096,
            "INSTANCES_CONFIDENCE_THRESH": 0.5,
        },
    },
    "RETINANET": {
        "NUM_CLASSES": 80,
        "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
        "NUM_CONVS": 4,
        "NORM": "",
        "IOU_THRESHOLDS": [0.4, 0.5],
        "IOU_LABELS": [0, -1, 1],
        "PRIOR_PROB": 0.01,  # score of every class at the start
        "SCORE_THRESH_TEST": 0.05,
        "TOPK_CANDIDATES_TEST": 1000,  # per feature map, before NMS
        "NMS_THRESH_TEST": 0.5,
        "BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
        "BBOX_REG_LOSS_TYPE": "smooth_l1",  # smooth_l1, giou, diou, ciou
        "SMOOTH_L1_LOSS_BETA": 0.1,
        "FOCAL_LOSS_GAMMA": 2.0,
        "FOCAL_LOSS_ALPHA": 0.25,
    },
}

_INPUT = {
    "FORMAT": "BGR",  # order of the channels that the model sees
    "MASK_FORMAT": "polygon",  # or "bitmask"
    "MIN_SIZE_TRAIN": (800,),  # pixels of the shorter side, one of them per image
    "MIN_SIZE_TRAIN_SAMPLING": "choice",  # or "range": anything between two values
    "MAX_SIZE_TRAIN": 1333,  # pixels of the longer side
    "MIN_SIZE_TEST": 800,  # 0: do not resize
    "MAX_SIZE_TEST": 1333,
    "RANDOM_FLIP": "horizontal",  # horizontal, vertical, none
    "CROP": {
        "ENABLED": False,
        "TYPE": "relative_range",  # relative_range, relative, absolute, absolute_range
        "SIZE": [0.9, 0.9],  # height, width
    },
}

_DATASETS = {
    "TRAIN": (),  # registered names
    "TEST": (),
    "PROPOSAL_FILES_TRAIN": (),  # one per data set, for MODEL.LOAD_PROPOSALS
    "PROPOSAL_FILES_TEST": (),
    "PRECOMPUTED_PROPOSAL_TOPK_TRAIN": 2000,
    "PRECOMPUTED_PROPOSAL_TOPK_TEST": 1000,
}

_DATALOADER = {
    "NUM_WORKERS": 4,  # per training process
    "ASPECT_RATIO_GROUPING": True,  # batches of only wide or only tall images need less padding
    "SAMPLER_TRAIN": "TrainingSampler",  # TrainingSampler, RepeatFactorTrainingSampler, RandomSubsetTrainingSampler
    "REPEAT_THRESHOLD": 0.0,  # RepeatFactor: classes in a smaller share of the images are repeated
    "REPEAT_SQRT": True,
    "FILTER_EMPTY_ANNOTATIONS": True,  # leave out training images without objects
}

_SOLVER = {
    "IMS_PER_BATCH": 16,  # over all processes
    "MAX_ITER": 40000,
    "BASE_LR": 0.001,
    "BASE_LR_END": 0.0,  # of WarmupCosineLR
    "LR_SCHEDULER_NAME": "WarmupMultiStepLR",  # WarmupMultiStepLR, WarmupCosineLR, WarmupStepWithFixedGammaLR
    "STEPS": (30000,),  # iterations at which the rate is multiplied by GAMMA
    "GAMMA": 0.1,
    "NUM_DECAYS": 3,  # of WarmupStepWithFixedGammaLR
    "RESCALE_INTERVAL": False,
    "WARMUP_METHOD": "linear",  # or "constant"
    "WARMUP_ITERS": 1000,
    "WARMUP_FACTOR": 0.001,  # of BASE_LR, at iteration 0
    "MOMENTUM": 0.9,
    "NESTEROV": False,
    "WEIGHT_DECAY": 0.0001,
    "WEIGHT_DECAY_NORM": 0.0,  # of normalisation layers
    "WEIGHT_DECAY_BIAS": None,  # None: WEIGHT_DECAY
    "BIAS_LR_FACTOR": 1.0,
    "CLIP_GRADIENTS": {
        "ENABLED": False,
        "CLIP_TYPE": "value",  # value, norm (each parameter by itself)
        "CLIP_VALUE": 1.0,
        "NORM_TYPE": 2.0,
    },
    "AMP": {"ENABLED": False},  # mixed precision
    "CHECKPOINT_PERIOD": 5000,  # iterations
    "REFERENCE_WORLD_SIZE": 0,  # number of processes that the values above are meant for; 0: do not rescale
}

_TEST = {
    "EVAL_PERIOD": 0,  # iterations; 0: only at the end
    "EXPECTED_RESULTS": [],  # [data set, task, metric, value, tolerance] each, checked after testing
    "DETECTIONS_PER_IMAGE": 100,
    "KEYPOINT_OKS_SIGMAS": [],
    "AUG": {
        "ENABLED": False,
        "MIN_SIZES": (400, 500, 600, 700, 800, 900, 1000, 1100, 1200),
        "MAX_SIZE": 4000,
        "FLIP": True,
    },
    "PRECISE_BN": {"ENABLED": False, "NUM_ITER": 200},
}

_C = CfgNode(
    {
        "VERSION": 2,  # of the key tree
        "MODEL": _MODEL,
        "INPUT": _INPUT,
        "DATASETS": _DATASETS,
        "DATALOADER": _DATALOADER,
        "SOLVER": _SOLVER,
        "TEST": _TEST,
        "OUTPUT_DIR": "./output",
        "SEED": -1,  # negative: a new one for each run
        "CUDNN_BENCHMARK": False,  # only pays off where image sizes hardly vary
        "FLOAT32_PRECISION": "",  # highest, high, medium ("": leave it to torch)
        "VIS_PERIOD": 0,  # iterations between training pictures in TensorBoard; 0: none
        "GLOBAL": {"HACK": 1.0},  # for experiments, by global_cfg
    }
)
