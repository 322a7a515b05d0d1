"""FSRW on the coloured boxes of tiny_detection.py, for tests that run whole procedures."""

from pathlib import Path
from typing import Any

import torch
from tiny_detection import tiny_opts

SIDE = 64
KEYS = {
    "MODEL__BACKBONE__NAME": "build_darknet19_backbone",
    "MODEL__DARKNET__WIDTH": 0.05,
    "MODEL__YOLO__SIZE": 96,
    "MODEL__YOLO__SCORE_THRESH_TEST": 0.0,
    "MODEL__YOLO__ANCHORS": [[0.6, 0.6], [1.0, 1.0]],
    "MODEL__REWEIGHTING__WIDTH": 0.1,
    "MODEL__REWEIGHTING__SUPPORT_SIZE": SIDE,
    "MODEL__PIXEL_MEAN": [0.0, 0.0, 0.0],
    "MODEL__PIXEL_STD": [255.0, 255.0, 255.0],
    "MODEL__DEVICE": "cpu",
    "INPUT__FORMAT": "RGB",
    "INPUT__MIN_SIZE_TRAIN": [0],
    "INPUT__MIN_SIZE_TEST": 0,
    "DATALOADER__ASPECT_RATIO_GROUPING": False,
    "FEW_SHOT__GROUP_BY_IMAGE": True,
    "FEW_SHOT__SHOTS": 2,
    "FEW_SHOT__METHOD": "fsrw",
    "SOLVER__CHECKPOINT_PERIOD": 100,
    "FEW_SHOT__BASE__MAX_ITER": 2,
    "FEW_SHOT__FINETUNE__MAX_ITER": 2,
}


def fsrw_opts(data: Path, output: Path, **more: Any) -> list[str]:
    """``KEY VALUE`` pairs, of which FEW_SHOT.METHOD chooses the detector; ``more`` with "__" for the dots."""
    opts = tiny_opts(data, output, **KEYS | more)
    pairs = zip(opts[::2], opts[1::2], strict=True)
    derived = ("MODEL.META_ARCHITECTURE", "SOLVER.MAX_ITER", "SOLVER.STEPS")  # given values would win
    return [word for pair in pairs if pair[0] not in derived for word in pair]


def support(classes: int, side: int = SIDE) -> dict[str, torch.Tensor]:
    """A support set of noise, each with its object in the same place."""
    images = torch.randint(0, 255, (classes, 4, side, side), dtype=torch.uint8)
    images[:, 3] = 0
    images[:, 3, 10:40, 5:30] = 1
    return {"image": images, "boxes": torch.tensor([[5.0, 10, 30, 40]] * classes)}
