"""A data set of two images with label maps, and a tiny Layer Cascade for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dyn_d2.config.read import read_cfg

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

NAME, CLASSES, SIZE = "toy_sem_seg", 3, 64
KEYS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.META_ARCHITECTURE": "LayerCascadeSegmentor",
    "MODEL.BACKBONE.NAME": "build_cascade_resnet_backbone",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.SEM_SEG_HEAD.NAME": "LayerCascadeHead",
    "MODEL.SEM_SEG_HEAD.NORM": "",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 8,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": CLASSES,
    "DATASETS.TEST": (NAME,),
    "INPUT.MIN_SIZE_TEST": SIZE,
    "DATALOADER.NUM_WORKERS": 0,
    "SEED": 0,
}


@contextmanager
def toy_layer_cascade(folder: Path) -> Iterator[None]:
    """config.yaml and model_final.pth in ``folder``; the data set is registered inside the block."""
    records = [_record(folder, i) for i in range(2)]
    DatasetCatalog.register(NAME, lambda: records)
    names = [f"class {i}" for i in range(CLASSES)]
    MetadataCatalog.get(NAME).set(evaluator_type="sem_seg", stuff_classes=names, ignore_label=255)
    cfg = read_cfg("", [str(part) for pair in KEYS.items() for part in pair])
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    try:
        yield
    finally:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def _record(folder: Path, number: int) -> dict:
    image, labels = folder / f"{number}.png", folder / f"{number}_labels.png"
    Image.fromarray(np.random.randint(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)).save(image)
    Image.fromarray(np.random.randint(0, CLASSES, (SIZE, SIZE), dtype=np.uint8)).save(labels)
    return {
        "file_name": str(image), "sem_seg_file_name": str(labels), "image_id": number, "height": SIZE, "width": SIZE,
    }  # fmt: skip
