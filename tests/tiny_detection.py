"""A data set of coloured boxes and a small detector for it, for tests that run whole tools."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dyn_d2.checkpoint import DynCheckpointer, describe
from dyn_d2.config.derive import build_cfg
from dyn_d2.engine.trainer import DynTrainer

from detectron2.config import CfgNode
from detectron2.modeling import build_model

CLASSES = ("red", "green", "blue", "yellow")
COLOURS = ((220, 40, 40), (40, 200, 60), (50, 60, 220), (220, 210, 40))


def write_boxes(folder: Path, images: int = 8, seed: int = 0, objects: int = 3, size: int = 64) -> Path:
    """Write images and a COCO json (four classes, masks included) below ``folder``; returns the json."""
    generator = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    records, annotations = [], []
    for image_id in range(1, images + 1):
        width, height = (size, size * 3 // 4) if image_id % 2 else (size * 3 // 4, size)
        pixels = generator.integers(90, 130, (height, width, 3)).astype(np.uint8)
        for _ in range(objects):
            kind = len(annotations) % len(CLASSES)
            w, h = generator.integers(12, 26, 2).tolist()
            x, y = int(generator.integers(0, width - w)), int(generator.integers(0, height - h))
            pixels[y : y + h, x : x + w] = COLOURS[kind]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": kind + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
        name = f"{image_id:03d}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
        records.append({"id": image_id, "file_name": name, "width": width, "height": height})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": records, "annotations": annotations, "categories": categories}))
    return path


def tiny_opts(data: Path, output: Path, **more) -> list[str]:
    """``KEY VALUE`` pairs: a small detector, and ``data`` (from write_boxes) as train and test set of a custom few-shot
    benchmark with the novel class "yellow"."""
    keys = {
        "OUTPUT_DIR": output,
        "SEED": 7,
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
        "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
        "MODEL.FPN.OUT_CHANNELS": 16,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [24], [48]],
        "MODEL.RPN.IN_FEATURES": ["p3", "p4", "p5", "p6"],
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
        "MODEL.ROI_HEADS.NAME": "DynROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES": ["p3", "p4", "p5"],
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 32,
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 4,
        "INPUT.MIN_SIZE_TRAIN": [48, 56, 64],
        "INPUT.MIN_SIZE_TEST": 64,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.MAX_ITER": 6,
        "SOLVER.STEPS": [4],
        "SOLVER.WARMUP_ITERS": 2,
        "SOLVER.CHECKPOINT_PERIOD": 2,
        "DATALOADER.NUM_WORKERS": 0,
        "FEW_SHOT.BENCHMARK": "custom",
        "FEW_SHOT.CUSTOM.TRAIN_JSON": data,
        "FEW_SHOT.CUSTOM.TRAIN_IMAGES": data.parent / "images",
        "FEW_SHOT.CUSTOM.TEST_JSON": data,
        "FEW_SHOT.CUSTOM.TEST_IMAGES": data.parent / "images",
        "FEW_SHOT.CUSTOM.BASE_CLASSES": list(CLASSES[:3]),
        "FEW_SHOT.CUSTOM.NOVEL_CLASSES": list(CLASSES[3:]),
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    return [str(part) for pair in keys.items() for part in pair]


def save_detector(folder: Path, **keys) -> CfgNode:
    """A fine-tuned detector, as far as its checkpoint tells, with random weights in ``folder``/model_final.pth; its
    images lie in ``folder``/data. ``keys`` as of ``tiny_opts``."""
    cfg = build_cfg("", tiny_opts(write_boxes(folder / "data", 2), folder, FEW_SHOT__STAGE="finetune", **keys))
    torch.manual_seed(0)
    model = build_model(cfg)
    DynCheckpointer(model, str(folder), metadata=describe(cfg, model)).save("model_final")
    return cfg


def train_recorded(cfg: CfgNode) -> tuple[list[dict[str, float]], DynTrainer]:
    """Train without an evaluation: the losses of each step, and the trainer in the end."""
    trainer = DynTrainer(cfg)
    trainer.cfg = cfg.clone()
    trainer.cfg.DATASETS.TEST = ()  # evaluated by the tests that want it
    trainer.resume_or_load(False)
    losses = []

    def keep(module, inputs, found) -> None:
        if module.training:
            losses.append({name: value.item() for name, value in found.items()})

    trainer.model.register_forward_hook(keep)
    trainer.train()
    return losses, trainer
