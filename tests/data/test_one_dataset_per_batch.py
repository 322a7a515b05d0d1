"""Batches of one data set at a time, and the augmentation of DeepLab."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from semantic_sets import SIZES, dsspn_opts

from dyn_d2.config.read import read_cfg
from dyn_d2.data.random_scale import RandomScale, scale_crop_flip
from dyn_d2.data.resumable import EvaluationLoader, build_resumable_train_loader


def _cfg(names, **more):
    return read_cfg("", dsspn_opts(names, names, **more))


def _first(cfg, count: int, start: int = 0) -> list[list[tuple[str, int]]]:
    loader = build_resumable_train_loader(cfg)
    loader.start_iter = start
    return [[(r["dataset"], r["image_id"]) for r in batch] for batch in islice(iter(loader), count)]


@pytest.mark.parametrize("grouping", [True, False])
def test_a_batch_is_of_one_set_and_larger_sets_come_more_often(squares, grouping):
    cfg = _cfg(squares, DATALOADER__ASPECT_RATIO_GROUPING=grouping)
    batches = _first(cfg, 27)  # three epochs of 6 + 12 images
    assert all(len({name for name, _ in batch}) == 1 for batch in batches)
    assert Counter(batch[0][0] for batch in batches) == {name: 3 * size // 2 for name, size in SIZES.items()}
    assert Counter(image for batch in batches for image in batch).most_common(1)[0][1] == 3
    assert _first(cfg, 5, start=20) == batches[20:25]


def test_without_it_sets_are_mixed_and_unnamed(squares):
    loader = build_resumable_train_loader(_cfg(squares, DATALOADER__ONE_DATASET_PER_BATCH=False))
    assert not any("dataset" in record for record in next(iter(loader)))


def test_evaluation_names_the_set(squares):
    (batch, *_) = EvaluationLoader(_cfg(squares), squares[1])
    assert batch[0]["dataset"] == squares[1]


def test_random_scale_then_crop(squares):
    cfg = _cfg(squares, INPUT__RANDOM_SCALE=[0.5, 2.0], INPUT__CROP__ENABLED=True)
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "absolute", [48, 48]
    sizes = set()
    for batch in islice(iter(build_resumable_train_loader(cfg)), 9):
        for record in batch:
            assert record["image"].shape[1:] == record["sem_seg"].shape
            assert record["sem_seg"].unique().numel() <= 2  # nearest, nothing in between
            sizes.add(tuple(record["sem_seg"].shape))
    assert max(max(size) for size in sizes) == 48 and min(min(size) for size in sizes) < 48


def test_random_scale_keeps_the_shape_and_refuses_nonsense(squares):
    transform = RandomScale(0.5, 0.5).get_transform(np.zeros((40, 60, 3), np.uint8))
    assert transform.apply_image(np.zeros((40, 60, 3), np.uint8)).shape == (20, 30, 3)
    with pytest.raises(ValueError, match="RANDOM_SCALE is .2.0, 0.5."):
        RandomScale(2.0, 0.5)
    with pytest.raises(ValueError, match="use .smallest, largest"):
        scale_crop_flip(_cfg(squares, INPUT__RANDOM_SCALE=[1.0]))
