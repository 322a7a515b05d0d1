"""Two small data sets of coloured squares with labels of the DigitScenes tree: one fine, one coarse."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dyn_d2.hierarchy import load_hierarchy  # first: makes detectron2 importable

from detectron2.data import DatasetCatalog, MetadataCatalog

LABEL_SETS = {"squares_digits": "digit_scenes_digits", "squares_places": "digit_scenes_places"}
SIZES = {"squares_digits": 6, "squares_places": 12}


def _write(folder: Path, images: int, classes: int) -> list[dict]:
    records = []
    for i in range(images):
        generator = np.random.default_rng(i)
        labels = np.full((64, 64), i % classes, np.uint8)
        labels[16:48, 16:48] = (i + 1) % classes
        pixels = generator.integers(0, 40, (64, 64, 3)) + 15 * labels[..., None]
        names = [str(folder / f"{i}_{kind}.png") for kind in ("image", "labels")]
        Image.fromarray(pixels.astype(np.uint8)).save(names[0])
        Image.fromarray(labels).save(names[1])
        records.append({"file_name": names[0], "sem_seg_file_name": names[1], "image_id": i, "height": 64, "width": 64})
    return records


@pytest.fixture
def squares(tmp_path):
    """The names of the data sets, registered while the test runs."""
    tree = load_hierarchy("digit_scenes")
    for name, label_set in LABEL_SETS.items():
        classes = list(tree.labels(label_set))
        (tmp_path / name).mkdir()
        records = _write(tmp_path / name, SIZES[name], len(classes))
        DatasetCatalog.register(name, lambda records=records: records)
        MetadataCatalog.get(name).set(
            evaluator_type="sem_seg",
            stuff_classes=classes,
            ignore_label=255,
            hierarchy="digit_scenes",
            label_set=label_set,
        )
    yield list(LABEL_SETS)
    for name in LABEL_SETS:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def dsspn_opts(train: list[str], test: list[str], **more) -> list[str]:
    """``KEY VALUE`` pairs of a tiny DSSPN over a feature pyramid; ``more`` with "__" for the dots."""
    keys = {
        "SEED": 3,
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
        "MODEL.META_ARCHITECTURE": "HierarchicalSegmentor",
        "MODEL.BACKBONE.NAME": "build_gated_fpn_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3"],
        "MODEL.FPN.IN_FEATURES": ["res2", "res3"],
        "MODEL.FPN.OUT_CHANNELS": 8,
        "MODEL.PIXEL_STD": [60.0, 60.0, 60.0],
        "MODEL.SEM_SEG_HEAD.NAME": "DSSPNHead",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["p2", "p3"],
        "MODEL.DSSPN.TREE": "digit_scenes",
        "MODEL.DSSPN.WIDTH": 6,
        "MODEL.DSSPN.BOTTLENECK": 8,
        "MODEL.DSSPN.TRANSITION_CHANNELS": 8,
        "MODEL.DSSPN.RATES": [1, 2],
        "INPUT.MIN_SIZE_TRAIN": [64],
        "INPUT.MIN_SIZE_TEST": 64,
        "DATASETS.TRAIN": train,
        "DATASETS.TEST": test,
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.ONE_DATASET_PER_BATCH": True,
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupPolyLR",
        "SOLVER.STEPS": [],
        "SOLVER.WARMUP_ITERS": 0,
        "SOLVER.MAX_ITER": 6,
        "SOLVER.CHECKPOINT_PERIOD": 2,
    } | {key.replace("__", "."): value for key, value in more.items()}
    return [str(part) for pair in keys.items() for part in pair]
