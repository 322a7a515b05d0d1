"""The tasks that a backbone can serve, as config keys of a tiny model and a batch for it."""

import torch

import dyn_d2  # noqa: F401  makes detectron2 importable for the processes that start here

from detectron2.structures import Boxes, Instances

CLASSES, SIZE = 3, 64
FPN = {
    "MODEL.BACKBONE.NAME": "build_gated_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 16,
}
RCNN = {
    "MODEL.META_ARCHITECTURE": "DynamicRCNN",
    "MODEL.ROI_HEADS.NUM_CLASSES": CLASSES,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 16,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 8,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
}
TASKS = {
    "rcnn_fpn": FPN | RCNN | {
        "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [48]],
        "MODEL.RPN.IN_FEATURES": ["p3", "p4", "p5", "p6"],
        "MODEL.ROI_HEADS.NAME": "DynROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES": ["p3", "p4", "p5"],
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 4,
    },
    "rcnn_c4": RCNN | {
        "MODEL.BACKBONE.NAME": "build_gated_resnet_backbone",
        "MODEL.RESNETS.OUT_FEATURES": ["res4"],
        "MODEL.ANCHOR_GENERATOR.SIZES": [[8, 16, 32]],
        "MODEL.ROI_HEADS.NAME": "DynRes5ROIHeads",
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 4,
    },
    "retinanet": FPN | {
        "MODEL.META_ARCHITECTURE": "DynamicRetinaNet",
        "MODEL.BACKBONE.NAME": "build_gated_retinanet_fpn_backbone",
        "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [48], [64]],
        "MODEL.RETINANET.NUM_CLASSES": CLASSES,
        "MODEL.RETINANET.NUM_CONVS": 1,
        "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    },
    "semantic_fpn": FPN | {
        "MODEL.META_ARCHITECTURE": "DynamicSegmentor",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": CLASSES,
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["p3", "p4", "p5"],
        "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 8,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    },
    "classifier": {
        "MODEL.META_ARCHITECTURE": "ImageClassifier",
        "MODEL.BACKBONE.NAME": "build_gated_resnet_backbone",
        "MODEL.RESNETS.OUT_FEATURES": ["res5"],
        "MODEL.IMAGE_CLASSIFIER.NUM_CLASSES": CLASSES,
    },
}  # fmt: skip
COMMON = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.PIXEL_STD": [60.0, 60.0, 60.0],
}
OUTPUTS = {"semantic_fpn": "sem_seg", "classifier": "scores"}  # of the others: "instances"


def task_opts(task: str, **more) -> list[str]:
    """``KEY VALUE`` pairs of the tiny model; ``more`` with "__" for the dots."""
    keys = COMMON | TASKS[task] | {key.replace("__", "."): value for key, value in more.items()}
    return [str(part) for pair in keys.items() for part in pair]


def batch(images: int = 2, size: int = SIZE) -> list[dict]:
    """Inputs with the ground truth of every task; the last image is smaller than the others."""
    found = []
    for i in range(images):
        height = size if i < images - 1 else size * 3 // 4
        truth = Instances((height, size))
        truth.gt_boxes = Boxes(torch.tensor([[4.0, 4, 30, 30], [20, 10, size - 4.0, height - 4.0]]))
        truth.gt_classes = torch.tensor([0, CLASSES - 1])
        found.append(
            {
                "image": torch.randint(0, 255, (3, height, size), dtype=torch.uint8),
                "instances": truth,
                "sem_seg": torch.randint(0, CLASSES, (height, size)),
                "label": i % CLASSES,
                "height": height,
                "width": size,
            }
        )
    return found
