"""Support sets: one object of each class for every batch, by seed and position; their images and masks."""

from itertools import islice

import numpy as np
import pytest
import torch
from fsrw_toy import SIDE, fsrw_opts
from PIL import Image
from tiny_detection import CLASSES, COLOURS, write_boxes

from dyn_d2.config.derive import build_cfg
from dyn_d2.data.resumable import build_resumable_train_loader
from dyn_d2.methods.fsrw.episodes import SupportMapper, SupportPool, box_mask, is_episodic
from dyn_d2.methods.fsrw.jitter import JitterColour, JitterCrop, jitters

from detectron2.structures import BoxMode


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_boxes(tmp_path_factory.mktemp("boxes"))


@pytest.fixture
def opts(data, tmp_path):
    return fsrw_opts(data, tmp_path, FEW_SHOT__STAGE="finetune")


def batches(opts, count: int, start: int = 0) -> list[list[dict]]:
    loader = build_resumable_train_loader(build_cfg("", opts))
    loader.start_iter = start
    return list(islice(iter(loader), count))


def same(first: list, second: list) -> bool:
    return all(torch.equal(a[0]["support"][key], b[0]["support"][key]) for a, b in zip(first, second, strict=True)
               for key in ("image", "boxes"))  # fmt: skip


def test_each_batch_has_one_object_of_each_class(tmp_path):
    opts = fsrw_opts(write_boxes(tmp_path, objects=1), tmp_path, FEW_SHOT__STAGE="finetune")  # no object hides another
    for batch in batches(opts, 4):
        given = batch[0]["support"]
        assert given["image"].shape == (4, 4, SIDE, SIDE) and given["boxes"].shape == (4, 4)
        assert "support" not in batch[1]
        for image, colour in zip(given["image"].float(), COLOURS, strict=True):
            inside = image[:3, image[3] > 0].median(dim=1).values
            distances = (torch.tensor(COLOURS).float() - inside).abs().sum(1)
            assert COLOURS[int(distances.argmin())] == colour


def test_supports_follow_from_seed_and_position(opts):
    whole = batches(opts, 6)
    assert same(batches(opts, 3, start=3), whole[3:])
    assert same(batches([*opts, "DATALOADER.NUM_WORKERS", "2"], 3, start=3), whole[3:])
    assert len({batch[0]["support"]["boxes"].sum().item() for batch in whole}) > 1
    assert not same(batches([*opts, "SEED", "8"], 6), whole)


def test_queries_are_those_of_a_detector_without_episodes(opts):
    plain = batches([*opts, "FEW_SHOT.METHOD", "yolo_ft"], 4)
    assert "support" not in plain[0][0]
    for with_support, without in zip(batches(opts, 4), plain, strict=True):
        assert all(torch.equal(a["image"], b["image"]) for a, b in zip(with_support, without, strict=True))


def test_only_shots_are_supports(opts):
    shots = [*opts, "FEW_SHOT.SHOTS", "1"]
    boxes = {tuple(batch[0]["support"]["boxes"].flatten().tolist()) for batch in batches([*shots, *NO_FLIP], 5)}
    assert len(boxes) == 1


NO_FLIP = ["INPUT.RANDOM_FLIP", "none"]


def test_which_detectors_are_episodic(opts):
    assert is_episodic(build_cfg("", opts))
    assert not is_episodic(build_cfg("", [*opts, "FEW_SHOT.METHOD", "yolo_ft"]))


def records() -> list[dict]:
    def annotation(category: int, box: list[float], **more) -> dict:
        return {"category_id": category, "bbox": box, "bbox_mode": BoxMode.XYWH_ABS, **more}

    return [
        {"file_name": "a.png", "annotations": [annotation(0, [0, 0, 4, 4]), annotation(1, [0, 0, 4, 4], iscrowd=1)]},
        {"file_name": "b.png", "annotations": [annotation(1, [1, 2, 3, 4]), annotation(0, [1, 2, 0, 4])]},
        {"file_name": "c.png", "annotations": [annotation(0, [1, 2, 3, 4], difficult=1), annotation(0, [5, 5, 2, 2])]},
    ]


def test_pool_has_proper_objects_only():
    pool = SupportPool(records(), ["cat", "dog"])
    assert pool.places == [[(0, 0), (2, 1)], [(1, 0)]]
    assert {pool.draw(seed)[0] for seed in range(20)} == {(0, 0), (2, 1)} and pool.draw(3) == pool.draw(3)
    assert pool.some("cat", 5, seed=0) == [(0, 0), (2, 1)] and len(pool.some("cat", 1, seed=0)) == 1


def test_missing_boxes_and_classes_are_named():
    with pytest.raises(ValueError, match="no support image of bird: the training set"):
        SupportPool(records(), ["cat", "dog", "bird"])
    SupportPool(records(), ["cat", "dog", "bird"], needed=["cat"])
    without = records()
    del without[1]["annotations"][0]["bbox"]
    with pytest.raises(ValueError, match="object of class dog in b.png has no box"):
        SupportPool(without, ["cat", "dog"])


def test_support_image_is_squashed_with_its_box(opts, tmp_path):
    cfg = build_cfg("", opts)
    picture = np.zeros((40, 80, 3), dtype=np.uint8)
    picture[10:20, 20:60] = (200, 100, 50)
    Image.fromarray(picture).save(tmp_path / "x.png")
    record = {"file_name": str(tmp_path / "x.png"), "height": 40, "width": 80}
    record["annotations"] = [{"category_id": 0, "bbox": [20, 10, 40, 10], "bbox_mode": BoxMode.XYWH_ABS}]
    image, box = SupportMapper(cfg, CLASSES, is_train=False)(record, 0)
    assert box.tolist() == [16.0, 16.0, 48.0, 32.0]
    assert image[3].sum() == 32 * 16 and image[3, 16:32, 16:48].all()
    assert image[:3, 24, 32].tolist() == [200, 100, 50]
    flipped = [SupportMapper(cfg, CLASSES, is_train=True)(record, 0)[1].tolist() for _ in range(8)]
    assert all(box == [16.0, 16.0, 48.0, 32.0] for box in flipped)  # symmetric
    record["annotations"][0]["bbox"] = [20, 10, 0, 10]
    with pytest.raises(ValueError, match="has no area"):
        SupportMapper(cfg, CLASSES, is_train=False)(record, 0)


def test_masks_are_the_pixels_in_the_box():
    mask = box_mask(torch.tensor([2.0, 1.0, 5.0, 3.0]), 8)
    assert mask.shape == (1, 8, 8) and mask.sum() == 6 and mask[0, 1:3, 2:5].all()
    assert box_mask(torch.tensor([2.1, 1.1, 2.3, 1.3]), 8).nonzero().tolist() == [[0, 1, 2]]  # less than a pixel


def test_jitter_moves_places_and_colours_within_its_range():
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    sizes = {JitterCrop(0.2).get_transform(image).apply_image(image).shape for _ in range(20)}
    assert len(sizes) > 5 and all(24 <= h <= 56 and 36 <= w <= 84 for h, w, _ in sizes)
    assert min(h for h, _, _ in sizes) < 40 < max(h for h, _, _ in sizes)
    image[10:20, 15:30] = 255
    for _ in range(20):  # the box goes with its object, and the outside is black
        crop = JitterCrop(0.2).get_transform(image)
        x0, y0, x1, y1 = crop.apply_box(np.array([[15.0, 10, 30, 20]]))[0].astype(int)
        moved = crop.apply_image(image)
        assert (x1 - x0, y1 - y0) == (15, 10) and (moved[y0:y1, x0:x1] == 255).all()
        left, top = x0 - 15, y0 - 10
        assert not moved[: max(0, top)].any() and not moved[:, : max(0, left)].any()
        assert not moved[max(0, top + 40) :].any() and not moved[:, max(0, left + 60) :].any()
    same_colour = JitterColour(0.0, 1.0, 1.0).get_transform(image).apply_image(image)
    assert np.abs(same_colour.astype(int) - image).max() <= 1
    grey = np.full((4, 4, 3), 100, dtype=np.uint8)
    exposed = [int(JitterColour(0.5, 2.0, 1.5).get_transform(grey).apply_image(grey)[0, 0, 0]) for _ in range(30)]
    assert min(exposed) >= 66 and max(exposed) <= 150 and len(set(exposed)) > 5
    red = np.zeros((2, 2, 3), dtype=np.uint8)
    red[..., 2] = 200  # BGR
    turned = JitterColour(0.1, 1.0, 1.0, bgr=True).get_transform(red).apply_image(red)
    assert turned[0, 0, 2] == 200 and turned[0, 0, :2].min() == 0  # a tenth of the circle leaves red the largest
    for wrong in (lambda: JitterCrop(0.5), lambda: JitterColour(0.6, 1, 1), lambda: JitterColour(0, 0.9, 1)):
        with pytest.raises(ValueError, match="INPUT.JITTER"):
            wrong()


def test_jitter_keys_reach_queries_and_supports(opts):
    cfg = build_cfg("", opts)
    assert jitters(cfg) == []
    changed = [*opts, *NO_FLIP, "INPUT.JITTER.CROP", "0.2", "INPUT.JITTER.EXPOSURE", "1.5"]
    assert [type(step) for step in jitters(build_cfg("", changed))] == [JitterCrop, JitterColour]
    first, second = batches(changed, 1)[0], batches([*opts, *NO_FLIP], 1)[0]
    assert first[0]["image"].shape != second[0]["image"].shape
    assert not torch.equal(first[0]["support"]["image"], second[0]["support"]["image"])
