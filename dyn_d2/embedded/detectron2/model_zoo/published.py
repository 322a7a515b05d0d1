"""Which models Detectron2 published, and how the name of one says what its config is.

A name is FOLDER/FAMILY_BACKBONE[_HEAD][_SCHEDULE][_VARIANT], e.g. COCO-Detection/faster_rcnn_R_101_FPN_3x. Each part
stands for a few keys on top of a base file, so that forty configs need no forty files.
"""

import re
from typing import Any

# Folder -> names with number and hash of their checkpoint; None: no weights were published.
CHECKPOINTS: dict[str, dict[str, str | None]] = {
    "COCO-Detection": {
        "faster_rcnn_R_50_C4_1x": "137257644/721ade",
        "faster_rcnn_R_50_DC5_1x": "137847829/51d356",
        "faster_rcnn_R_50_FPN_1x": "137257794/b275ba",
        "faster_rcnn_R_50_C4_3x": "137849393/f97cb7",
        "faster_rcnn_R_50_DC5_3x": "137849425/68d202",
        "faster_rcnn_R_50_FPN_3x": "137849458/280758",
        "faster_rcnn_R_101_C4_3x": "138204752/298dad",
        "faster_rcnn_R_101_DC5_3x": "138204841/3e0943",
        "faster_rcnn_R_101_FPN_3x": "137851257/f6e8b1",
        "faster_rcnn_X_101_32x8d_FPN_3x": "139173657/68b088",
        "retinanet_R_50_FPN_1x": "190397773/bfca0b",
        "retinanet_R_50_FPN_3x": "190397829/5bd44e",
        "retinanet_R_101_FPN_3x": "190397697/971ab9",
        "rpn_R_50_C4_1x": "137258005/450694",
        "rpn_R_50_FPN_1x": "137258492/02ce48",
        "fast_rcnn_R_50_FPN_1x": "137635226/e5f7ce",
    },
    "COCO-InstanceSegmentation": {
        "mask_rcnn_R_50_C4_1x": "137259246/9243eb",
        "mask_rcnn_R_50_DC5_1x": "137260150/4f86c3",
        "mask_rcnn_R_50_FPN_1x": "137260431/a54504",
        "mask_rcnn_R_50_FPN_1x_giou": None,
        "mask_rcnn_R_50_C4_3x": "137849525/4ce675",
        "mask_rcnn_R_50_DC5_3x": "137849551/84107b",
        "mask_rcnn_R_50_FPN_3x": "137849600/f10217",
        "mask_rcnn_R_101_C4_3x": "138363239/a2914c",
        "mask_rcnn_R_101_DC5_3x": "138363294/0464b7",
        "mask_rcnn_R_101_FPN_3x": "138205316/a3ec72",
        "mask_rcnn_X_101_32x8d_FPN_3x": "139653917/2d9806",
    },
    "LVISv0.5-InstanceSegmentation": {
        "mask_rcnn_R_50_FPN_1x": "144219072/571f7c",
        "mask_rcnn_R_101_FPN_1x": "144219035/824ab5",
        "mask_rcnn_X_101_32x8d_FPN_1x": "144219108/5e3439",
    },
    "LVISv1-InstanceSegmentation": {
        "mask_rcnn_R_50_FPN_1x": None,
        "mask_rcnn_R_101_FPN_1x": None,
        "mask_rcnn_X_101_32x8d_FPN_1x": None,
    },
    "PascalVOC-Detection": {
        "faster_rcnn_R_50_C4": "142202221/b1acc2",
        "faster_rcnn_R_50_FPN": None,
    },
    "Cityscapes": {"mask_rcnn_R_50_FPN": "142423278/af9cf5"},
    "Misc": {"semantic_R_50_FPN_1x": None, "mask_rcnn_R_50_FPN_1x_cls_agnostic": None},
}

_NAME = re.compile(
    r"(?P<family>[a-z_]+)_(?P<backbone>R_50|R_101|X_101_32x8d)_(?P<head>C4|DC5|FPN)(_(?P<schedule>[13]x))?(_(?P<variant>\w+))?"
)
_BASES = {"C4": "Base-RCNN-C4", "DC5": "Base-RCNN-DilatedC5", "FPN": "Base-RCNN-FPN"}
_PROPOSALS = "detectron2://COCO-Detection/rpn_R_50_FPN_1x/137258492/coco_2017_{}_box_proposals_{}.pkl"
_VOC_SIZES = tuple(range(480, 801, 32))
_LVIS = {
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0001,
    "TEST.DETECTIONS_PER_IMAGE": 300,
    "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
    "DATALOADER.REPEAT_THRESHOLD": 0.001,
}

_BACKBONES: dict[str, dict[str, Any]] = {
    "R_50": {"MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl", "MODEL.RESNETS.DEPTH": 50},
    "R_101": {"MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-101.pkl", "MODEL.RESNETS.DEPTH": 101},
    "X_101_32x8d": {
        "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl",
        "MODEL.PIXEL_STD": [57.375, 57.120, 58.395],
        "MODEL.RESNETS.DEPTH": 101,
        "MODEL.RESNETS.NUM_GROUPS": 32,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
    },
}
_FAMILIES: dict[str, dict[str, Any]] = {
    "faster_rcnn": {},
    "retinanet": {},
    "mask_rcnn": {"MODEL.MASK_ON": True},
    "semantic": {
        "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
        "DATASETS.TRAIN": ("coco_2017_train_panoptic_stuffonly",),
        "DATASETS.TEST": ("coco_2017_val_panoptic_stuffonly",),
    },
    "rpn": {"MODEL.META_ARCHITECTURE": "ProposalNetwork", "MODEL.RPN.POST_NMS_TOPK_TEST": 2000},
    "fast_rcnn": {
        "MODEL.LOAD_PROPOSALS": True,
        "MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals",
        "DATASETS.PROPOSAL_FILES_TRAIN": (_PROPOSALS.format("train", "21bc3a"),),
        "DATASETS.PROPOSAL_FILES_TEST": (_PROPOSALS.format("val", "ee0dad"),),
        "DATALOADER.NUM_WORKERS": 2,  # each has a copy of all proposals
    },
}
_SCHEDULES: dict[str | None, dict[str, Any]] = {
    None: {},
    "1x": {},
    "3x": {"SOLVER.STEPS": (210000, 250000), "SOLVER.MAX_ITER": 270000},
}
_VARIANTS: dict[str | None, dict[str, Any]] = {
    None: {},
    "giou": {
        "MODEL.RPN.BBOX_REG_LOSS_TYPE": "giou",
        "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": 2.0,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "giou",
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 10.0,
    },
    "cls_agnostic": {"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True},
}
_FOLDERS: dict[str, dict[str, Any]] = {
    "LVISv0.5-InstanceSegmentation": {
        **_LVIS,
        "MODEL.ROI_HEADS.NUM_CLASSES": 1230,
        "DATASETS.TRAIN": ("lvis_v0.5_train",),
        "DATASETS.TEST": ("lvis_v0.5_val",),
    },
    "LVISv1-InstanceSegmentation": {
        **_LVIS,
        "MODEL.ROI_HEADS.NUM_CLASSES": 1203,
        "DATASETS.TRAIN": ("lvis_v1_train",),
        "DATASETS.TEST": ("lvis_v1_val",),
        "SOLVER.STEPS": (120000, 160000),
        "SOLVER.MAX_ITER": 180000,
    },
    "PascalVOC-Detection": {
        "MODEL.ROI_HEADS.NUM_CLASSES": 20,
        "INPUT.MIN_SIZE_TRAIN": _VOC_SIZES,
        "DATASETS.TRAIN": ("voc_2007_trainval", "voc_2012_trainval"),
        "DATASETS.TEST": ("voc_2007_test",),
        "SOLVER.STEPS": (12000, 16000),
        "SOLVER.MAX_ITER": 18000,
        "SOLVER.WARMUP_ITERS": 100,
    },
    "Cityscapes": {  # starts from COCO
        "MODEL.WEIGHTS": "detectron2://COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl",
        "MODEL.ROI_HEADS.NUM_CLASSES": 8,
        "INPUT.MIN_SIZE_TRAIN": tuple(range(800, 1025, 32)),
        "INPUT.MIN_SIZE_TEST": 1024,
        "INPUT.MAX_SIZE_TRAIN": 2048,
        "INPUT.MAX_SIZE_TEST": 2048,
        "DATASETS.TRAIN": ("cityscapes_fine_instance_seg_train",),
        "DATASETS.TEST": ("cityscapes_fine_instance_seg_val",),
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.STEPS": (18000,),
        "SOLVER.MAX_ITER": 24000,
        "SOLVER.IMS_PER_BATCH": 8,
        "TEST.EVAL_PERIOD": 8000,
    },
}


def names() -> list[str]:
    """All names, FOLDER/MODEL."""
    return [f"{folder}/{model}" for folder, models in CHECKPOINTS.items() for model in models]


def derive(name: str) -> tuple[str, dict[str, Any]]:
    """The base file (without .yaml) and the keys on top of it, for one of ``names()``."""
    folder, model = name.split("/")
    part = _NAME.fullmatch(model).groupdict()
    keys = {
        **_BACKBONES[part["backbone"]],
        **_FAMILIES[part["family"]],
        **_SCHEDULES[part["schedule"]],
        **_VARIANTS[part["variant"]],
        **_FOLDERS.get(folder, {}),
    }
    if (part["family"], part["head"]) == ("rpn", "C4"):
        keys["MODEL.RPN.PRE_NMS_TOPK_TEST"] = 12000
    return "Base-RetinaNet" if part["family"] == "retinanet" else _BASES[part["head"]], keys
